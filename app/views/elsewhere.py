"""What a page says about a run whose model is absent: one that ships with the app, or was opened from a file."""

import streamlit as st

from analysis.figures.terms import device_words
from app.messages import plain
from app.state import Run
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


def model_absent(run: Run) -> bool:
    """Whether a run's model is absent; the page then says, in place of what needs it, how to get it."""
    if not run.has_model:
        st.caption(say("model_absent"), help=say("model_absent_help"))
    return not run.has_model
