"""The address of a run, and a line that shows it in a frame of another page."""

from dataclasses import replace
from html import escape

import streamlit as st

from app import links
from app.state import Run
from app.strings import say


def show(run: Run) -> None:
    """Offer both to copy.

    Args:
        run: that is shown.
    """
    link = links.link_of(run)
    with st.expander(say("share"), icon=":material/share:"):
        if link is None:
            st.caption(say("share_file"))
            return
        place = st.context.url or ""
        framed = replace(link, fields={**link.fields, "embed": "true"})
        st.caption(say("share_link"))
        st.code(f"{place}{link}", language=None, wrap_lines=True)
        st.caption(say("share_frame"))
        st.code(frame(f"{place}{framed}"), language=None, wrap_lines=True)


def frame(address: str) -> str:
    """The line of HTML that shows an address in a frame."""
    source = escape(address, quote=True)
    return f'<iframe src="{source}" title="SUBLLM explorer" width="100%" height="900" style="border: 0"></iframe>'


def whole_page(run: Run) -> None:
    """In a frame, a link to the whole page.

    Args:
        run: that is shown.
    """
    link = links.link_of(run)
    if link is not None and st.context.url:
        st.link_button(say("share_whole"), f"{st.context.url}{link}", icon=":material/open_in_new:")
