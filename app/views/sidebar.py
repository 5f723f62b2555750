"""The selectors that pages share: checkpoint, device and dtype, and the language.

The main script draws them, and not each page: on a change of page, a browser sends the values of what the main script
drew and of nothing else, so that a choice made just before would be lost.
"""

import streamlit as st

from app import links
from app.components import page_links
from app.settings import Settings
from app.state import session
from app.views import chooser

EXPLORE, DEBUG, WATCH = "", "debug", "watch"  # paths of pages; the first page has none


def show(settings: Settings, page: str) -> None:
    """Read the link that opened the session, which chooses too, and draw the selectors.

    Args:
        settings: what the operator allows.
        page: path of the page.
    """
    if page in (EXPLORE, DEBUG):
        links.open_link(settings)
    if hidden(page):
        return
    with st.sidebar:
        if page != WATCH:
            chooser.model(settings)
        chooser.language_switch()
        page_links.wait_for_fields()


def hidden(page: str) -> bool:
    """Whether a page shows a run and nothing to choose: in a frame, and on Explore by the link of a teacher.

    Args:
        page: path of the page.
    """
    framed = page in (EXPLORE, DEBUG) and bool(st.context.is_embedded)
    return framed or (page == EXPLORE and session().lesson.pinned)
