"""The runs of a session: the last ones are kept, and which of them is shown is said here alone.

The selector follows what is shown, and changes it only in the moment that a person chooses. A browser can send the
value of a selector that is gone, with which Streamlit calls its callback again: so each has a number of its own, there
is a new one for every run that arrives and on every page, and only the last one counts.
"""

import streamlit as st

from analysis import Trace
from app.runs import Source
from app.strings import say

_KEPT = 8


def traces() -> list[Trace]:
    """All that are kept, the last one first."""
    kept: list[Trace] = st.session_state.get("traces", [])
    return kept


def source_of(trace: Trace) -> Source:
    """Where one of them came from.

    Args:
        trace: of `traces`.
    """
    source: Source = st.session_state["sources"][trace.digest]
    return source


def name_of(trace: Trace) -> str:
    """What one of them is called; its number in the session makes that the name of no other.

    Args:
        trace: of `traces`.
    """
    number = list(st.session_state["sources"]).index(trace.digest) + 1
    where = trace.provenance
    return f"{number} · {trace.prompt.strip()[:60]!r} · {where.checkpoint} · {where.dtype}"


def remember(trace: Trace, source: Source, *, shown: bool = True) -> None:
    """Keep a run, in place of the one kept longest.

    Args:
        trace: of the run.
        source: of the trace.
        shown: it is shown from now on; otherwise what was shown before still is.
    """
    if shown and st.session_state.get("shown run") != trace.digest:
        st.session_state["shown run"] = trace.digest
        st.session_state["run selector"] = _selector() + 1
    others = [other for other in traces() if other.digest != trace.digest]
    while len(others) >= _KEPT:
        others.remove(next(other for other in reversed(others) if other.digest != st.session_state.get("shown run")))
    st.session_state["traces"] = [trace, *others]
    st.session_state.setdefault("sources", {})[trace.digest] = source


def choose(label: str, page: str) -> Trace | None:
    """The run that is shown, with a selector of the others; None if there is none.

    Args:
        label: key of the selector's label.
        page: that it stands on.
    """
    kept = traces()
    if not kept:
        return None
    if st.session_state.get("run selector of") != page:
        st.session_state["run selector of"] = page
        st.session_state["run selector"] = _selector() + 1
    digest = st.session_state["shown run"]
    if len(kept) > 1:
        names = {trace.digest: name_of(trace) for trace in kept}
        st.selectbox(
            say(label), list(names), list(names).index(digest), names.__getitem__, key=f"run selector {_selector()}",
            on_change=_chosen, args=(_selector(),),
        )  # fmt: skip
    return next(trace for trace in kept if trace.digest == digest)


def _selector() -> int:
    number: int = st.session_state.get("run selector", 0)
    return number


def _chosen(selector: int) -> None:
    digest = st.session_state[f"run selector {selector}"]
    if selector == _selector() and digest in [trace.digest for trace in traces()]:
        st.session_state["shown run"] = digest
