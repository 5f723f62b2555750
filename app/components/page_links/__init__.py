"""Links to other pages, which wait until what was entered just before has arrived."""

from pathlib import Path

import streamlit as st

from analysis.figures.modules import join

_JS = join(Path(__file__).with_name("view.js"))
_KEY = "page links"


def wait_for_fields() -> None:
    """Delay a click on a link to another page until this page has got what was entered just before."""
    asked = st.session_state.get(_KEY, {}).get("asked")
    component = st.components.v2.component("subllm_page_links", js=_JS)
    component(data={"answered": asked}, key=_KEY, on_asked_change=lambda: None)
