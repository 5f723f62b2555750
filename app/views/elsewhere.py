"""What a page says about a run whose model is absent: one that ships with the app, or was opened from a file."""

import streamlit as st

from analysis.figures.terms import device_words
from app.messages import plain
from app.state import Elsewhere, Form, Run, session
from app.strings import language, say, table


def label(run: Run) -> None:
    """Say where a run was measured, if that was not here."""
    if not run.has_model:
        where = run.trace.provenance
        st.info(
            plain(
                say(f"elsewhere_{run.origin}", device=device_words(where.device, table(language())), dtype=where.dtype)
            ),
            icon=":material/info:",
        )
    if run.origin is Elsewhere.FILE and st.button(
        say("elsewhere_fill"), key="fill in", icon=":material/edit:", help=say("elsewhere_fill_help"),
        on_click=_fill_in, args=(run.trace.prompt.text,),
    ):  # fmt: skip
        st.rerun()  # the form may stand outside of the fragment


def _fill_in(text: str) -> None:
    own = session()
    own.form = own.debug_form = Form(text, False)
    for key in ("prompt", "chat", "example", "debug prompt", "debug chat"):
        st.session_state.pop(key, None)  # the pages fill their fields anew


def model_absent(run: Run) -> bool:
    """Whether a run's model is absent; the page then says, in place of what needs it, how to get it."""
    if not run.has_model:
        st.caption(say("model_absent"), help=say("model_absent_help"))
    return not run.has_model
