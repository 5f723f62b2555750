"""What helps to fill in a prompt, on every page that has one: turns of a chat, and files."""

from collections.abc import Callable

import streamlit as st

from analysis.trace.chat_text import MOST_BYTES, FilePrompt, prompt_in_file, with_turn
from app.limits import Feature
from app.messages import plain, told
from app.settings import Settings
from app.state import session
from app.strings import say
from subllm import PromptError

_LARGEST_FILE = MOST_BYTES >> 20  # MB
_STYLE = """<style>
.st-key-prompt, .st-key-debug-prompt { [data-testid="InputInstructions"] { display: none } }
</style>"""  # that Ctrl+Enter applies the text: only a click on Run does anything with it


def offer(settings: Settings, keep: Callable[[], None], text: str, chat: str, example: str = "") -> None:
    """A menu beside a prompt's form.

    Args:
        settings: what the operator allows.
        keep: called when the form was filled in.
        text: key of the prompt's text area.
        chat: key of the switch of the chat template.
        example: key of the choice of examples, if there is one; what is filled in is none of them.
    """
    st.html(_STYLE)
    with st.popover(say("parts"), icon=":material/attach_file:", width="stretch"):
        st.caption(say("parts_turns_help"))
        st.button(
            say("parts_turn"),
            key=f"{text} turn",
            icon=":material/add_comment:",
            on_click=_add_turn,
            args=(keep, text, chat, example),
        )
        if Feature.UPLOADS in settings.limits.features:
            key = f"{text} file"
            st.file_uploader(
                say("parts_file"), ["txt", "md", "json"], key=key, max_upload_size=_LARGEST_FILE,
                help=say("parts_file_help"), on_change=_read_file, args=(key, keep, text, chat, example),
            )  # fmt: skip
            mistake = session().recall("prompt file", key)
            if mistake is not None:
                st.error(plain(told(mistake)), icon=":material/error:")


def _add_turn(keep: Callable[[], None], text: str, chat: str, example: str) -> None:
    _fill(FilePrompt(with_turn(st.session_state[text]), True), keep, text, chat, example)


def _fill(prompt: FilePrompt, keep: Callable[[], None], text: str, chat: str, example: str) -> None:
    st.session_state[text], st.session_state[chat] = prompt
    if example:
        st.session_state[example] = None
    keep()


def _read_file(key: str, keep: Callable[[], None], text: str, chat: str, example: str) -> None:
    """Fill in what a file holds; a mistake is said until another file is chosen."""
    found = session().found
    found.pop("prompt file", None)
    file = st.session_state[key]
    if file is None:
        return
    try:
        read = prompt_in_file(file.name, file.getvalue())
    except PromptError as error:
        found["prompt file"] = (key, error)
        return
    _fill(read, keep, text, chat, example)
