"""The button that stops what is being computed, in sight while there is a progress bar on the page.

There is one, outside of all fragments: a press inside of a fragment waits until that fragment has run to its end. What
a page computes without being asked, such as the effect of edits, begins again when the page is drawn anew.
"""

from collections.abc import Callable

import streamlit as st

from app.strings import say

_STYLE = """<style>
.st-key-stop { display: none; }
.stApp:has([data-testid="stProgress"]) .st-key-stop {
  display: block; position: fixed; right: 1.5rem; bottom: 1.5rem; width: auto; z-index: 1000;
}
.st-key-stop button { box-shadow: 0 2px 12px rgb(0 0 0 / 35%); }
</style>"""


def show(pressed: Callable[[], None] | None = None) -> None:
    """Draw the button: any press ends the script's run.

    Args:
        pressed: called at a press.
    """
    st.html(_STYLE)
    st.button(say("stop"), key="stop", icon=":material/stop_circle:", help=say("stop_help"), on_click=pressed)
