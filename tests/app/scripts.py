"""A page of the app as a script of its own, with its sidebar, and without the navigation."""

MODULES = {
    "explore": "app.views.explore",
    "debug": "app.views.debug.page",
    "efficiency": "app.views.efficiency.page",
    "corpus": "app.views.corpus.page",
    "watch": "app.views.watch",
}


def script(page: str) -> str:
    """The code for Streamlit's test runner.

    Args:
        page: one of `MODULES`.
    """
    path = "" if page == "explore" else page
    return (
        f"from {MODULES[page]} import show\nfrom app.settings import Settings\nfrom app.views import sidebar\n"
        f"sidebar.show(Settings.read(), {path!r})\nshow()\n"
    )


def leaving(code: str) -> str:
    """A page's code with a switch, key "here"; while it is off, nothing of the page is drawn, as on another page."""
    page, shown, _ = code.rpartition("show()")
    return f"import streamlit as st\n{page}if st.checkbox('here', True, key='here'):\n    {shown}\n"
