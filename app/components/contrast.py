"""Dark text on the dark theme's primary colour, where Streamlit writes white on any (2.6:1 on ours, and 4.5 is needed).

No blue has that contrast both with white, on a button, and with a dark page, as the text of a chosen tab. The theme has
no colour for text on the primary one, so here are selectors of Streamlit's elements, as in `stop.py` and
`app/views/prompt_parts.py`, and nowhere else; tests/browser/test_accessibility.py fails if they change.
"""

import streamlit as st

_STYLE = """<style>
.stApp button[kind^="primary"]:not(:disabled), .stApp [data-tag-index] { color: light-dark(#ffffff, #10151c) }
</style>"""


def show() -> None:
    """Add the style to the page."""
    st.html(_STYLE)
