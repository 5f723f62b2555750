"""One action of a visitor, kept within the limits whatever kind of work it is.

All work reports its progress between its steps, so that is where it can be stopped: by the visitor, at its time limit,
or when the visitor's share of the hour is used up. Between two passes it also gives its device to those who wait.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NoReturn, Protocol

from analysis import RunStopped
from analysis.guard import Limit, Progress
from app.limits import Limits

_HOUR = 3600.0
_BETWEEN_PASSES = (
    "continuing",
    "passes",
    "attribution",
    "corpus",
)  # stages; within a pass, its memory stays on the device


class Place(Protocol):
    """A place in the queue of a device."""

    def wait(self, progress: Progress) -> None:
        """Wait until those who asked before are done."""

    def go_back(self) -> None:
        """Let those who wait go first."""

    def is_waited_for(self) -> bool:
        """Whether somebody waits behind."""


@dataclass(frozen=True)
class Use:
    """What was used, of what a visitor may use in an hour."""

    seconds: float = 0.0
    tokens: int = 0
    texts: int = 0


class Account:
    """What one visitor has used within the last hour."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: deque[tuple[float, Use]] = deque()

    def add(self, use: Use) -> None:
        """Count what was used just now."""
        with self._lock:
            self._used.append((time.monotonic(), use))

    def left(self, limits: Limits) -> Use:
        """What may still be used; something is negative if too much was."""
        with self._lock:
            self._forget()
            used = [sum(getattr(use, each.name) for _, use in self._used) for each in fields(Use)]
        most = (limits.hourly_seconds, limits.hourly_tokens, limits.hourly_texts)
        return Use(*(each - one for each, one in zip(most, used, strict=True)))

    def minutes(self, name: str, more: float, most: float) -> int:
        """Minutes until enough is forgotten for something more; at least 1.

        Args:
            name: of a field of `Use`.
            more: that is to be used; no more than `most`.
            most: that may be used in an hour.
        """
        with self._lock:
            self._forget()
            used = [(since, getattr(use, name)) for since, use in self._used]
        total, until = sum(each for _, each in used), time.monotonic()
        for since, each in used:
            if total + more <= most:
                break
            total, until = total - each, since + _HOUR
        return max(1, math.ceil((until - time.monotonic()) / 60))

    def _forget(self) -> None:
        while self._used and self._used[0][0] + _HOUR <= time.monotonic():
            self._used.popleft()


class Work(Limit):
    """The progress of one action.

    Attributes:
        limits: that hold.
        tokens: that it has read and generated.

    Args:
        limits: that hold.
        account: of the visitor.
        progress: shows the progress, and raises if the visitor stops the work.
    """

    def __init__(self, limits: Limits, account: Account, progress: Progress) -> None:
        self.limits, self.tokens = limits, 0
        self._account, self._used = account, 0.0
        self._since: float | None = None  # when the device was got
        self._place: Place | None = None  # that can be given back
        super().__init__(progress, limits.seconds)

    def clock(self) -> float:
        """Seconds of the device that were used."""
        return self._used + self._held()

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """See `Progress`; may take long, if others who wait go first.

        Raises:
            RunStopped: at a limit.
        """
        if stage == "waiting":
            self._progress(share, stage, **values)
            return
        super().__call__(share, stage, **values)
        place = self._place
        if place and stage in _BETWEEN_PASSES and self._held() > self.limits.turn_seconds and place.is_waited_for():
            self._end()
            place.go_back()
            place.wait(self)
            self._begin()

    def check(self) -> None:
        """See `Limit`; the visitor's hour counts as well."""
        super().check()
        if self._held() > self._account.left(self.limits).seconds:
            if self._since is not None:  # what was used until now counts when the work is begun again
                self._end()
                self._begin()
            self._refuse("seconds", self.clock())

    def admit(self, tokens: int, texts: int = 0) -> None:
        """Count tokens before they are read or generated.

        Raises:
            RunStopped: if the visitor has used too many within the last hour.
        """
        use, left = Use(tokens=tokens, texts=texts), self._account.left(self.limits)
        for each in fields(Use):
            if getattr(use, each.name) > getattr(left, each.name):
                self._refuse(each.name, getattr(use, each.name))
        self.tokens += tokens
        self._account.add(use)

    @contextmanager
    def on_device(self, place: Place, *, whole: bool) -> Iterator[None]:
        """Count the time of a turn.

        Args:
            place: that has come to the front of the queue.
            whole: whether nobody else may go first until the end.
        """
        self._place = None if whole else place
        self._begin()
        try:
            yield
        finally:
            self._end()
            self._place = None

    def _held(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since

    def _begin(self) -> None:
        self._since = time.monotonic()

    def _end(self) -> None:
        held = self._held()
        self._since = None
        self._used += held
        if held:
            self._account.add(Use(seconds=held))

    def _refuse(self, name: str, more: float) -> NoReturn:
        """Say what to do where more is asked for than the visitor's hour has left."""
        most: float = getattr(self.limits, f"hourly_{name}")
        what = "seconds of computing" if name == "seconds" else name
        if more > most:
            raise RunStopped(
                "This is more than a visitor can use in an hour ({what}: {most:,.0f}). Ask for less.",
                most=most,
                what=what,
            )
        raise RunStopped(
            "Too little is left of what you can use in an hour ({what}: {most:,.0f}). Try again in {minutes} min, or "
            "ask for less.",
            most=most,
            what=what,
            minutes=self._account.minutes(name, more, most),
        )


def admit(progress: Progress, tokens: int, texts: int = 0) -> None:
    """Count tokens before they are read or generated; see `Work.admit`. A progress without limits takes any."""
    if isinstance(progress, Work):
        progress.admit(tokens, texts)
