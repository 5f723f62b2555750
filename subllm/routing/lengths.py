"""How many tokens each row of a batch has: on the host, where shapes need it, and on the device, where masks do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def kept_count(retention_ratio: float, lengths: Tensor) -> Tensor:
    """ceil(ρT) for every T in `lengths`; products such as 0.07 · 100 count as the whole numbers they stand for."""
    return (lengths.double() * retention_ratio - 1e-6).ceil().clamp(min=0).long()


def capacity(retention_ratio: float, lengths: Tensor) -> Tensor:
    """int(ρT), but at least 1, for every T in `lengths`; products such as 0.29 · 100 count as in `kept_count`."""
    return (lengths.double() * retention_ratio + 1e-6).floor().clamp(min=1).long()


@dataclass(frozen=True)
class Lengths:
    """Number of tokens in each row. Neither form is computed from the other: the host would wait for the device.

    Attributes:
        rows: number of tokens in each row.
        column: (B, 1) the same numbers on the device; one plain number if all rows agree.
    """

    rows: tuple[int, ...]
    column: int | Tensor

    @classmethod
    def even(cls, length: int, batch: int) -> Self:
        """Rows of equal length."""
        return cls((length,) * batch, length)

    @classmethod
    def count(cls, mask: Tensor) -> Self:
        """Count the True entries in each row of a (B, T) mask; the host waits once."""
        counts = mask.sum(1)
        return cls.of(counts.tolist(), counts[:, None])

    @classmethod
    def of(cls, rows: Sequence[int], column: int | Tensor) -> Self:
        """Lengths that are known in both forms; a column of equal numbers is dropped for the number."""
        equal = len(set(rows)) == 1
        return cls(tuple(rows), rows[0] if equal else column)

    def __add__(self, other: Self) -> Self:
        rows = [n + m for n, m in zip(self.rows, other.rows, strict=True)]
        return type(self).of(rows, self.column + other.column)

    def to(self, device: torch.device) -> Self:
        """The same with the column on another device."""
        return self if isinstance(self.column, int) else type(self)(self.rows, self.column.to(device))

    def select(self, rows: Tensor) -> Self:
        """The lengths of the given rows, in that order; rows may repeat."""
        if isinstance(self.column, int):
            return type(self).even(self.column, len(rows))
        return type(self).of([self.rows[row] for row in rows.tolist()], self.column[rows.to(self.column.device)])

    @property
    def longest(self) -> int:
        """Number of tokens in the longest row."""
        return max(self.rows, default=0)

    @property
    def is_even(self) -> bool:
        """Whether all rows agree."""
        return isinstance(self.column, int)

    def mask(self, width: int, device: torch.device) -> Tensor | None:
        """(B, width) True at the first tokens of each row, as many as it has; None if that is everywhere."""
        if isinstance(self.column, int) and self.column >= width:
            return None
        return (torch.arange(width, device=device) < self.column).expand(len(self.rows), -1)
