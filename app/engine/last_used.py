"""A bounded store that several threads share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class LastUsed(Generic[_Value]):
    """The values that were used last, by key.

    Args:
        most: number of values that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        """The value; None if it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def take(self, key: Hashable) -> _Value | None:
        """The value, which is no longer kept; None if it was not."""
        with self._lock:
            return self._values.pop(key, None)

    def put(self, key: Hashable, value: _Value) -> None:
        """Keep a value, and drop those used longest ago if there are too many."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def make_room(self) -> None:
        """Drop the oldest value if there is no room for another."""
        with self._lock:
            while len(self._values) >= self._most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()

    def keep(self, wanted: Callable[[_Value], bool]) -> None:
        """Drop all values but the wanted ones."""
        with self._lock:
            for key in [key for key, value in self._values.items() if not wanted(value)]:
                del self._values[key]

    def values(self) -> list[_Value]:
        """All values, the one used last at the end."""
        with self._lock:
            return list(self._values.values())
