"""Addresses: the link that a session was opened by, and the address that opens what is shown in another browser.

    /?checkpoint=NAME&prompt=TEXT&chat=0&level=0&selected=-1&colour=score
    /debug?checkpoint=NAME&prompt=TEXT&chat=0&edits=drop 2-4@0;dense@1&answer=TEXT

Whoever wrote a link is a stranger: it can name what the operator offers, and nothing else.
"""

import streamlit as st

from analysis.record import silent
from app.messages import plain
from app.runs import Source
from app.settings import Settings
from app.strings import language, say
from subllm import CheckpointError

_LONGEST = 600  # characters of a prompt that a link carries
_LONGEST_NAME = 80  # characters of a name that a message repeats


def opened(settings: Settings) -> dict[str, str]:
    """What the link says that a session was opened by, with its checkpoint and prompt filled in; nothing later on.

    To be called before the widgets are made. A link for a checkpoint that is not offered is refused with a message; its
    prompt is filled in nevertheless.

    Args:
        settings: what the operator allows.
    """
    if "opened" in st.session_state:
        return {}  # from now on the address follows the page
    st.session_state["opened"] = True
    fields = st.query_params.to_dict()
    if "prompt" not in fields:
        return {}
    st.session_state["typed"] = (fields["prompt"], fields.get("chat") == "1", None)
    name = fields.get("checkpoint")
    if name is not None and not _offered(settings, name):
        short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
        st.error(plain(say("link_checkpoint", name=repr(short))), icon=":material/error:")
        return {}
    if name is not None:
        st.session_state["checkpoint"] = name
    return fields


def write(source: Source, fields: dict[str, str]) -> None:
    """Put into the address what opens this run in another browser; nothing if its prompt is long.

    Args:
        source: of the run.
        fields: of the page, besides checkpoint, prompt and language.
    """
    if not carries(source):
        st.query_params.from_dict({"lang": language()})
        return
    begin = {"checkpoint": source.choice, "prompt": source.text, "chat": str(int(source.chat)), "lang": language()}
    st.query_params.from_dict(begin | fields)


def carries(source: Source) -> bool:
    """Whether a link, or a command, has room for a prompt.

    Args:
        source: of the run.
    """
    return len(source.text) <= _LONGEST


def _offered(settings: Settings, name: str) -> bool:
    if name in settings.choices():
        return True
    try:
        settings.locate(name, silent)  # a folder: nothing is built or fetched for it
    except CheckpointError:
        return False
    return True
