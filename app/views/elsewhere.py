"""What a page says about a run whose model is absent: one that ships with the app, or was opened from a file."""

import streamlit as st

from analysis.figures.terms import device_words
from app.messages import plain
from app.state import Elsewhere, Form, Run, session
from app.strings import language, say, table


def label(run: Run, *, debug: bool = False) -> None:
    """Say where a run was measured, if that was not here; a button fills in the prompt of one from a file.

    Args:
        run: that is shown.
        debug: whether the page is Debug, which has a form of its own.
    """
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
        on_click=_fill_in, args=(run.trace.prompt.text, debug),
    ):  # fmt: skip
        st.rerun()  # the form may stand outside of the fragment


def _fill_in(text: str, debug: bool) -> None:
    if debug:
        session().debug_form = Form(text, False)
    else:
        session().form = Form(text, False)
    for key in ("debug prompt", "debug chat") if debug else ("prompt", "chat", "example"):
        st.session_state.pop(key, None)  # the page fills its fields anew


def model_absent(run: Run) -> bool:
    """Whether a run's model is absent; the page then says, in place of what needs it, how to get it."""
    if not run.has_model:
        st.caption(say("model_absent"), help=say("model_absent_help"))
    return not run.has_model
