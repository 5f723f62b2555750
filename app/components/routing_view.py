"""The prompt as text and as a map of blocks by tokens, as an element of a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis import Trace
from analysis.figures.routing_view.data import Shown, Spotlight, view_data
from analysis.figures.routing_view.element import CSS, HTML, JS


@dataclass(frozen=True)
class Exchange:
    """What was exchanged with the browser about one element, which is kept for the next run of the page.

    Attributes:
        sent: what the browser was asked to show.
        received: what the browser shows since then.
        marked: tokens that a learner marked.
    """

    sent: Shown
    received: Shown
    marked: tuple[int, ...] = ()


def routing_view(
    trace: Trace,
    shown: Shown,
    before: Exchange | None,
    words: Mapping[str, str],
    key: str,
    spotlight: Spotlight | None = None,
) -> Exchange:
    """Show a trace.

    Args:
        trace: trace of a prompt.
        shown: what is to be shown. The browser takes it over if it is not what it shows already.
        before: what was exchanged in the last run of the page; None if the element is new.
        words: labels by key.
        key: key of the element.
        spotlight: what a lesson lights and hides; None without a lesson.
    """
    sent = shown
    if before and heard(trace, shown, before, key):
        sent = before.sent  # the same bytes, which Streamlit does not send again; a new element has not answered yet
    result = _component()(
        data=view_data(trace, sent, words, spotlight), key=key, height="content", on_shown_change=lambda: None,
        on_marked_change=lambda: None,
    )  # fmt: skip
    return Exchange(sent, _shown(result, trace, sent) or sent, _marked(result.marked, trace, spotlight))


def heard(trace: Trace, asked: Shown, before: Exchange, key: str) -> Shown | None:
    """What the browser shows, before the element is drawn; None if it has not answered, or is to show something new.

    Args:
        trace: trace of a prompt.
        asked: what is to be shown.
        before: what was exchanged in the last run of the page.
        key: key of the element.
    """
    return _shown(st.session_state.get(key), trace, before.sent) if before.received == asked else None


def _shown(state: Any, trace: Trace, sent: Shown) -> Shown | None:
    """What the browser says that it shows, if that is its answer to what it was asked to show."""
    said = state.get("shown") if isinstance(state, Mapping) else None
    if not isinstance(said, Mapping) or (said.get("id"), said.get("told")) != (trace.subject, vars(sent)):
        return None
    return Shown.parse(said, trace)


def _marked(answer: Any, trace: Trace, spotlight: Spotlight | None) -> tuple[int, ...]:
    """The tokens that a browser says are marked, without any that cannot be, and without those of another run."""
    if spotlight is None or not isinstance(answer, Mapping) or answer.get("id") != trace.subject:
        return ()
    tokens = answer.get("tokens")
    found = tokens[: trace.num_tokens] if isinstance(tokens, list) else []
    return tuple(sorted({token for token in found if isinstance(token, int)} & {*spotlight.among}))


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return st.components.v2.component("subllm_routing_view", html=HTML, css=CSS, js=JS)
