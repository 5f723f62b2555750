"""Two traces compared entry by entry, within a tolerance: what a change to the code or the machine changed in a run."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields

import numpy as np

from ..errors import AnalysisError
from .files import PARTS
from .trace import Trace


@dataclass(frozen=True)
class Difference:
    """How one array or text of two traces differs.

    Attributes:
        what: its name, such as "routing.kept"; a part's where only one trace has it.
        said: the difference in words.
    """

    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.what}: {self.said}"


def differences(first: Trace, second: Trace, tolerance: float = 0.0, ignored: Collection[str] = ()) -> list[Difference]:
    """Differences of all parts with arrays; provenance and costs may differ, since machines and times do.

    Prompts with other tokens are the only difference that is returned, since the other arrays have a column for each.

    Args:
        first: a trace.
        second: another one.
        tolerance: numbers x and y are equal if |x - y| ≤ tolerance · max(1, |x|, |y|). Decisions, ids and texts must
            be equal in any case, and NaN equals NaN.
        ignored: names of parts that may differ.

    Raises:
        AnalysisError: if the tolerance is negative or NaN, or there is no part of an ignored name.
    """
    if not tolerance >= 0:
        raise AnalysisError("The tolerance is {tolerance}; it must be 0 or more.", tolerance=tolerance)
    for name in ignored:
        if name not in PARTS:
            raise AnalysisError("There is no part {name!r}; there are {parts}.", name=name, parts=", ".join(PARTS))
    ids, other = first.prompt.token_ids, second.prompt.token_ids
    if not np.array_equal(ids, other):
        common = min(len(ids), len(other))
        unequal = np.flatnonzero(ids[:common] != other[:common])
        at = int(unequal[0]) if len(unequal) else common
        return [Difference("prompt", f"{len(ids):,} and {len(other):,} tokens, the same up to token {at:,}")]
    return [found for name in PARTS if name not in ignored for found in _of_part(name, first, second, tolerance)]


def _of_part(name: str, first: Trace, second: Trace, tolerance: float) -> Iterator[Difference]:
    one, other = getattr(first, name), getattr(second, name)
    if one is None or other is None:
        if one is not other:
            yield Difference(name, f"only the {'second' if one is None else 'first'} has it")
        return
    for entry in fields(one):
        said = _unequal(getattr(one, entry.name), getattr(other, entry.name), tolerance)
        if said:
            yield Difference(f"{name}.{entry.name}", said)


def _unequal(one: object, other: object, tolerance: float) -> str:
    """How two values differ; "" if they do not."""
    if one is None or other is None:
        return "" if one is other else f"only the {'second' if one is None else 'first'} has it"
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return "" if one == other else f"{one!r:.60} and {other!r:.60}"
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    if one.dtype.kind != "f":
        return _where(one, other, one != other)
    x, y = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of two infinities
        apart = np.where(x == y, 0.0, np.abs(x - y))
    unknown = np.isnan(x) != np.isnan(y)
    near = apart <= tolerance * np.maximum(1, np.maximum(np.abs(x), np.abs(y)))
    differ = unknown | ~(near | (np.isnan(x) & np.isnan(y)))
    said = _where(one, other, differ)
    return f"{said}; at most {np.nanmax(apart[differ & ~unknown]):.3g} apart" if (differ & ~unknown).any() else said


def _where(one: np.ndarray, other: np.ndarray, differ: np.ndarray) -> str:
    if not differ.any():
        return ""
    place = tuple(np.argwhere(differ)[0].tolist())
    values = f"{one[place].item()!r:.40} and {other[place].item()!r:.40}"
    return f"{differ.sum():,} of {differ.size:,} entries differ, the first at {list(place)}: {values}"
