"""The part of the address after the #, which only the browser knows: read when a link is opened, written after runs."""

from pathlib import Path
from typing import Any

import streamlit as st

from analysis.figures.modules import join

_JS = join(Path(__file__).with_name("view.js"))


def read() -> str | None:
    """What stands after the #; None until the browser has said it, which runs the page again."""
    result = _component()(data={"read": True}, key="link fragment read", on_fragment_change=lambda: None)
    return result.fragment if isinstance(result.fragment, str) else None


def write(fragment: str, query: str) -> None:
    """Put a text after the #, and keep it there while this element is on the page.

    Args:
        fragment: the text.
        query: of the address. The text is put there again when this changes, since Streamlit then takes it away.
    """
    _component()(data={"read": False, "fragment": fragment, "query": query}, key="link fragment")


def _component() -> Any:
    return st.components.v2.component("subllm_link_fragment", js=_JS)
