"""The runs of a session: the last ones are kept, to be looked at again and compared."""

import streamlit as st

from analysis import Trace
from app.runs import Source
from app.strings import say

LONGEST_LINK = 600  # characters of a prompt that a link carries
_KEPT = 8


def traces() -> list[Trace]:
    """All that are kept."""
    kept: list[Trace] = st.session_state.get("traces", [])
    return kept


def source_of(trace: Trace) -> Source:
    """Where one of them came from.

    Args:
        trace: of `traces`.
    """
    source: Source = st.session_state["sources"][trace.digest]
    return source


def remember(trace: Trace, source: Source, *, first: bool = True) -> None:
    """Keep a run in place of the one kept longest.

    Args:
        trace: of the run.
        source: of the trace.
        first: it is the one to be shown; otherwise it comes last.
    """
    others = [other for other in traces() if other.digest != trace.digest]
    st.session_state["traces"] = [trace, *others][:_KEPT] if first else [*others[: _KEPT - 1], trace]
    st.session_state.setdefault("sources", {})[trace.digest] = source


def choose(label: str, key: str) -> Trace | None:
    """The run to show: the last one, or an earlier one if the user wants that; None if there is none.

    Args:
        label: key of the selector's label.
        key: of the selector.
    """
    kept = traces()
    if len(kept) < 2:
        return kept[0] if kept else None
    names = {trace.digest: f"{trace.prompt.strip()[:60]!r} · {trace.provenance.checkpoint}" for trace in kept}
    if st.session_state.get(key) not in names:
        st.session_state.pop(key, None)
    chosen = st.selectbox(say(label), list(names), format_func=names.__getitem__, key=key)
    return next(trace for trace in kept if trace.digest == chosen)
