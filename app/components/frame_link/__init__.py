"""Links in a frame: the page around it is told the app's address, and an address without a path names a page."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import Page

from analysis.figures.modules import join

_JS = join(Path(__file__).with_name("view.js"))
_FIELD = "page"


def open_named(pages: Sequence[Page], page: Page) -> None:
    """Go to the page that a field of the address names, and take the field away.

    Args:
        pages: all pages.
        page: the one that the address leads to.
    """
    name = st.query_params.get(_FIELD)
    if name is None:
        return
    fields = {key: value for key, value in st.query_params.to_dict().items() if key != _FIELD}
    named = next((each for each in pages if each.url_path == name), page)
    st.switch_page(named, query_params=fields)


def tell(origin: str, page: Page) -> None:
    """Tell the page that shows the app in a frame what the app's address is, now and whenever it changes.

    Args:
        origin: of that page, the only one that is told.
        page: the one that is shown.
    """
    data = {"origin": origin, "page": page.url_path}
    st.components.v2.component("subllm_frame_link", js=_JS)(data=data, key="frame link")
