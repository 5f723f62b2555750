"""One run at a time on each device, in the order of asking."""

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
import torch

from analysis import RunStopped
from analysis.guard import Progress

from .work import Work

_CHECK = 0.5  # seconds between two looks at a stop button while waiting


class DeviceQueue:
    """One run at a time, in the order of asking."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[object] = deque()

    @contextmanager
    def place(self, device: str, most: float) -> Iterator["Place"]:
        """A place at the end, until the context ends.

        Args:
            device: of the queue, for the message.
            most: number of runs that may wait, besides the one that has the device.

        Raises:
            RunStopped: if as many wait.
        """
        place = Place(self)
        with self.changed:
            if len(self.waiting) > most:
                raise RunStopped(
                    "{waiting} runs wait for {device} already, and no more can. Try again in a minute.",
                    waiting=len(self.waiting) - 1,
                    device=device,
                )
            self.waiting.append(place)
        try:
            yield place
        finally:
            with self.changed:
                self.waiting.remove(place)
                self.changed.notify_all()


class Place:
    """A place in a queue."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue

    def wait(self, progress: Progress) -> None:
        """Wait for those who stand before.

        Args:
            progress: receives the number of runs ahead; may raise to stop waiting.
        """
        queue = self._queue
        while True:
            with queue.changed:
                ahead = queue.waiting.index(self)
                if ahead:
                    queue.changed.wait(timeout=_CHECK)
            if not ahead:
                return
            progress(0.0, "waiting", ahead=ahead)

    def go_back(self) -> None:
        """Go to the end, behind those who wait now."""
        queue = self._queue
        with queue.changed:
            queue.waiting.remove(self)
            queue.waiting.append(self)
            queue.changed.notify_all()

    def is_waited_for(self) -> bool:
        """Whether somebody stands behind."""
        with self._queue.changed:
            return self._queue.waiting[-1] is not self


class _Queues:
    """A queue for each device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, DeviceQueue] = {}

    def of(self, device: str) -> DeviceQueue:
        with self._lock:
            return self._queues.setdefault(str(torch.device(device)), DeviceQueue())


@st.cache_resource(show_spinner=False)
def _queues() -> _Queues:
    return _Queues()


@contextmanager
def turn(device: str, progress: Progress, *, whole: bool = False) -> Iterator[None]:
    """A device to oneself, once those who asked before have had it; turns cannot be nested.

    Long work lets others go first between two of its passes, if it reports them to a `Work`.

    Args:
        device: as torch names it.
        progress: receives the number of runs ahead; may raise to stop waiting.
        whole: whether nobody may go first until the context ends.

    Raises:
        RunStopped: if too many wait already.
    """
    work = progress if isinstance(progress, Work) else None
    with _queues().of(device).place(device, math.inf if work is None else work.limits.waiting) as place:
        place.wait(progress)
        if work is None:
            yield
        else:
            with work.on_device(place, whole=whole):
                yield
