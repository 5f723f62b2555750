"""What the parts of a trace share: their arrays are read-only, and checked against the axes that they declare.

An array field is annotated with one letter per axis and the kinds of numbers that it may hold, as numpy writes them:
`Annotated[np.ndarray, "ST", "f"]` is an array of floating-point numbers of shape (S, T).
"""

from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, get_origin

import numpy as np

from ..errors import TraceError

_KINDS = {"b": "booleans", "iu": "whole numbers", "f": "floating-point numbers", "U": "text"}  # by numpy's letters


class Part:
    """A part of a trace: its arrays cannot be written to, and have the axes and kinds of their annotations."""

    def __post_init__(self) -> None:
        letters: dict[str, int] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value, name = getattr(self, entry.name), f"{type(self).__name__}.{entry.name}"
            if entry.name not in self.arrays():
                if not isinstance(value, str):
                    raise TraceError(f"{name} is {value!r:.40}; it must be text.")
            elif value is not None or entry.default is MISSING:
                array, (axes, kinds) = np.asarray(value), self.arrays()[entry.name]
                array = array.copy() if array.flags.writeable else array  # its maker may still write to it
                array.flags.writeable = False
                object.__setattr__(self, entry.name, array)
                if array.dtype.kind not in kinds:
                    raise TraceError(f"{name} holds {array.dtype}; it must hold {_KINDS[kinds]}.")
                expected = tuple(letters.get(letter, size) for letter, size in zip(axes, array.shape, strict=False))
                if array.ndim != len(axes) or array.shape != expected:
                    known = ", ".join(f"{letter} = {letters[letter]}" for letter in axes if letter in letters)
                    raise TraceError(
                        f"{name} has shape {array.shape}; it must be ({', '.join(axes)})"
                        f"{f' with {known}' if known else ''}."
                    )
                letters |= dict(zip(axes, array.shape, strict=True))

    @classmethod
    @cache
    def arrays(cls) -> dict[str, tuple[str, str]]:
        """Axes of each array field, and the kinds of numbers that it may hold."""
        own: dict[str, Any] = {entry.name: entry.type for entry in fields(cls)}  # type: ignore[arg-type]
        return {name: kind.__metadata__ for name, kind in own.items() if get_origin(kind) is Annotated}

    @property
    def axes(self) -> dict[str, int]:
        """Length of each axis by its letter."""
        found: dict[str, int] = {}
        for name, (axes, _) in self.arrays().items():
            value = getattr(self, name)
            if value is not None:
                found |= dict(zip(axes, value.shape, strict=True))
        return found
