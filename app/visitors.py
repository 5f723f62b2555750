"""Who is using the app, and what each of them does: every action has its limits and a line in the log."""

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import streamlit as st

from analysis import AnalysisError, RunStopped
from app.engine import Account, Work
from app.limits import Feature
from app.messages import ProgressBar
from app.settings import Settings
from app.strings import say
from subllm import SubllmError

_IDLE = 600.0  # seconds after which a visitor who does nothing takes no place
_log = logging.getLogger("app")


@dataclass(eq=False)
class Action:
    """What a visitor has asked for.

    Attributes:
        name: what the log calls it.
        page: path of the page that it was asked for on.
        over: whether it came to an end, or the visitor stopped it.
    """

    name: str
    page: str
    over: bool = False


@dataclass(eq=False)
class Visitor:
    """The person whose browser this is.

    Attributes:
        number: in the order of arrival, for the log.
        account: what was used.
        seen: when something was clicked last.
        page: path of the page that is shown.
        last: what was asked for last.
    """

    number: int
    account: Account = field(default_factory=Account)
    seen: float = field(default_factory=time.monotonic)
    page: str = ""
    last: Action | None = None


class _Visitors:
    """Those whose sessions are open."""

    def __init__(self) -> None:
        self._lock, self._numbers = threading.Lock(), itertools.count(1)
        self._here: weakref.WeakSet[Visitor] = weakref.WeakSet()

    def enter(self, visitor: Visitor | None, most: float) -> Visitor:
        with self._lock:
            busy = [each for each in self._here if each.seen > time.monotonic() - _IDLE]
            if visitor not in busy and len(busy) >= most:
                raise RunStopped(
                    "{most:,.0f} people are using the app, and there is no room for more. Try again in a few minutes.",
                    most=most,
                )
            if visitor is None:
                visitor = Visitor(next(self._numbers))
                self._here.add(visitor)
            visitor.seen = time.monotonic()
            return visitor


@st.cache_resource(show_spinner=False)
def _visitors() -> _Visitors:
    return _Visitors()


def enter(settings: Settings) -> Visitor:
    """The visitor whose browser this is.

    Args:
        settings: what the operator allows.

    Raises:
        RunStopped: if there are too many already.
    """
    visitor = _visitors().enter(st.session_state.get("visitor"), settings.limits.visitors)
    st.session_state["visitor"] = visitor
    return visitor


@contextmanager
def working(
    action: str, settings: Settings, bar: ProgressBar, feature: Feature | None = None, *, drawn: bool = True
) -> Iterator[Work]:
    """One action of the visitor, within the limits; the log names it and says how it ended.

    Args:
        action: what the log calls it.
        settings: what the operator allows.
        bar: shows the progress.
        feature: that has to be switched on.
        drawn: whether the bar is drawn at once, and cleared at the end; not for what a page begins without being asked.

    Raises:
        RunStopped: if there is no room, or the feature is switched off; inside, at a limit.
    """
    visitor = enter(settings)
    if feature is not None:
        check(feature, settings)
    work, outcome, asked = Work(settings.limits, visitor.account, bar), "stopped", Action(action, visitor.page)
    if drawn:
        visitor.last = asked
    try:
        with bar if drawn else nullcontext():
            yield work
        outcome = "done"
    except (SubllmError, AnalysisError) as error:
        outcome = f"refused ({type(error).__name__})"
        raise
    except Exception as error:
        outcome = f"failed ({type(error).__name__})"
        raise
    finally:
        asked.over = asked.over or outcome != "stopped"
        _log.info("visitor %d: %s, %d tokens, %.1f s, %s", visitor.number, action, work.tokens, work.clock(), outcome)


@contextmanager
def interruption_said(page: str) -> Iterator[None]:
    """Say above a page that a change interrupted what was asked for there, unless the page begins it again.

    Streamlit runs the script anew at every change, which ends the run before: maybe later than the new one begins, so
    what is not over by now is what counts.

    Args:
        page: its path.
    """
    visitor: Visitor = st.session_state["visitor"]
    visitor.page, before, place = page, visitor.last, st.empty()
    yield
    last = visitor.last
    if before and last and not before.over and before.page == page and (last is before or last.name != before.name):
        place.warning(say("interrupted"), icon=":material/warning:")


def note_stop() -> None:
    """Note that the visitor stops what was asked for, which nothing interrupts then."""
    visitor: Visitor | None = st.session_state.get("visitor")
    if visitor is not None and visitor.last is not None:
        visitor.last.over = True


def check(feature: Feature, settings: Settings) -> None:
    """See that a feature is switched on.

    Raises:
        RunStopped: if it is not.
    """
    if feature not in settings.limits.features:
        raise RunStopped(
            "This is switched off here ({feature}). Whoever runs the app can switch it on with SUBLLM_FEATURES.",
            feature=str(feature),
        )
