"""The selector of the session's runs.

It follows the run that is shown, and changes it only when a visitor chooses another one. A browser can send the value
of a selector that is gone, and Streamlit then calls its callback again. So every selector has a number, a new one is
made for every new run and on every page, and only the last one counts.
"""

import streamlit as st

from app.state import Run, session
from app.strings import say


def choose(label: str, page: str) -> Run | None:
    """The run that is shown, with a selector of the others; None if there is none.

    Args:
        label: key of the selector's label.
        page: page that the selector is on.
    """
    own = session()
    run = own.run()
    if run is None or len(own.runs) < 2:
        return run
    selector = (page, own.visit(page), own.changes)
    names = {each.trace.run: each.name for each in own.runs}
    st.selectbox(
        say(label), list(names), list(names).index(run.trace.run), names.__getitem__, key=f"run selector {selector}",
        on_change=_chosen, args=(selector,),
    )  # fmt: skip
    return run


def _chosen(selector: tuple[str, int, int]) -> None:
    own = session()
    if selector == (own.page, own.visits, own.changes):
        own.choose(st.session_state[f"run selector {selector}"])
