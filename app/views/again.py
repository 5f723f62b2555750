"""What a page shows, as a command and as Python to copy."""

import streamlit as st

from app.reproduce import PROMPT_FILE, Code
from app.strings import say


def show(code: Code, *, command: bool = True, note: str = "") -> None:
    """Offer what makes it again.

    Args:
        code: to copy.
        command: whether the command is shown, too; some pages show it already.
        note: what has to be done before.
    """
    with st.expander(say("again"), icon=":material/content_copy:"):
        st.caption(note or say("again_help"))
        if code.prompt:
            st.download_button(
                say("again_prompt", file=PROMPT_FILE), code.prompt.encode(), PROMPT_FILE, "text/plain",
                icon=":material/download:", on_click="ignore",
            )  # fmt: skip
        if command and code.command:
            st.code(code.command, language=None, wrap_lines=True)
        st.code(code.python, language=None, wrap_lines=True)
