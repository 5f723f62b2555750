"""What somebody writes about a run; it goes into the files that are saved of it."""

import streamlit as st

from analysis.trace.trace import LONGEST_NOTE
from app.state import Run, session
from app.strings import say


def show(run: Run) -> None:
    """A field for the note of a run.

    Args:
        run: that is shown.
    """
    key = f"note {run.trace.run}"
    if st.session_state.get(key) != run.trace.note:  # at first, and when a file with a note was opened
        st.session_state[key] = run.trace.note
    st.text_area(
        say("note"), key=key, max_chars=LONGEST_NOTE, height=80, help=say("note_help"), on_change=_keep,
        args=(run.trace.run, key),
    )  # fmt: skip


def _keep(name: str, key: str) -> None:
    session().annotate(name, st.session_state[key])
