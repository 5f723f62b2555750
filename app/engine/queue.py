"""One run at a time on each device, in the order of asking."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import streamlit as st
import torch

from analysis.guard import Progress

_CHECK = 0.5  # seconds between two looks at a stop button while waiting


class DeviceQueue:
    """One run at a time, in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self, progress: Progress) -> Iterator[None]:
        """Wait for those who asked before; others wait until the context ends.

        Args:
            progress: receives the number of runs ahead; may raise to stop waiting.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
        try:
            while True:
                with self._changed:
                    ahead = self._waiting.index(ticket)
                    if ahead:
                        self._changed.wait(timeout=_CHECK)
                if not ahead:
                    break
                progress(0.0, "waiting", ahead=ahead)
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


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


def turn(device: str, progress: Progress) -> AbstractContextManager[None]:
    """A device to oneself, once those who asked before have had it; turns cannot be nested.

    Args:
        device: as torch names it.
        progress: receives the number of runs ahead; may raise to stop waiting.
    """
    return _queues().of(device).turn(progress)
