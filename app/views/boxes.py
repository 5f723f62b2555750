"""Selectors whose labels are in the visitor's language.

A browser sends the label of what is chosen and not its value, so after a switch of the language it would send a label
that is not among the options. Each language therefore has selectors of its own, which begin with what was chosen in the
language before. What is chosen also stays while another page is visited.
"""

from collections.abc import Callable, Sequence
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
