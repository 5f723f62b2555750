"""Selectors and tabs whose labels are in the visitor's language.

A browser sends the label of what is chosen and not its value, so after a switch of the language it would send a label
that is not among the options. Each language therefore has selectors of its own, which begin with what was chosen in the
language before. What is chosen also stays while another page is visited.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from app.state import session
from app.strings import language

T = TypeVar("T")
_PLAIN = "en"  # its selectors have the key itself


def one_of(
    label: str,
    options: Sequence[T],
    names: Callable[[T], str],
    key: str,
    *,
    place: Any = st,
    default: int = 0,
    help: str | None = None,
) -> T:
    """A selector of one option.

    Args:
        label: above it.
        options: at least one.
        names: label of an option.
        key: key of the selector, the same in all languages.
        place: container that it is in.
        default: index of the option that is chosen first.
        help: explanation.
    """
    _begin(key, lambda before: before in options, options[default])
    chosen: T = place.selectbox(label, options, key=_own(key), format_func=names, help=help)
    session().chosen[key] = chosen
    return chosen


def several_of(
    label: str,
    options: Sequence[T],
    names: Callable[[T], str],
    key: str,
    *,
    place: Any = st,
    default: Sequence[T] = (),
    help: str | None = None,
) -> list[T]:
    """A selector of any number of options; see `one_of`.

    Args:
        label: above it.
        options: to choose from.
        names: label of an option.
        key: key of the selector, the same in all languages.
        place: container that it is in.
        default: what is chosen first.
        help: explanation.
    """
    _begin(key, lambda before: set(before) <= set(options), list(default))
    chosen: list[T] = place.multiselect(label, options, key=_own(key), format_func=names, help=help)
    session().chosen[key] = chosen
    return chosen


def in_tabs(views: Mapping[str, tuple[str, Callable[[], None]]], key: str) -> None:
    """Views in tabs, of which the open one only is drawn; it stays open in another language and after other pages.

    Args:
        views: label of the tab and the view that draws it, by a name that is the same in all languages.
        key: key of the tabs.
    """
    labels = [label for label, _ in views.values()]
    known = session().chosen.get(key, "")
    if st.session_state.get(key) not in labels and known in views:
        st.session_state[key] = views[known][0]
    for tab, (name, (_, view)) in zip(st.tabs(labels, on_change="rerun", key=key), views.items(), strict=True):
        if tab.open:
            session().chosen[key] = name
            with tab:
                view()


def chosen_in(key: str) -> Any:
    """What a selector of a form was left at; its callback runs before the page does.

    Args:
        key: key of the selector.
    """
    return st.session_state[_own(key)]


def choose(key: str, option: object) -> None:
    """Choose an option of a selector, before the selector is made.

    Args:
        key: key of the selector.
        option: one of its options.
    """
    session().chosen[key] = st.session_state[_own(key)] = option


def put(key: str, value: object) -> None:
    """Set the value of a widget, before it is made, where it is another one.

    A value that every run of the page sets takes back what a visitor chooses during a run.

    Args:
        key: key of the widget.
        value: what it is to show.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def _own(key: str) -> str:
    return key if language() == _PLAIN else f"{key} {language()}"


def _begin(key: str, offered: Callable[[Any], bool], default: Any) -> None:
    """Set what a selector begins with, unless it is on the page already with one of its options."""
    if _own(key) not in st.session_state or not offered(st.session_state[_own(key)]):
        known = session().chosen
        st.session_state[_own(key)] = known[key] if key in known and offered(known[key]) else default
