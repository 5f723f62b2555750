"""Kept tokens of every cell, in the corpus and in every resample of its documents."""

from dataclasses import dataclass

import numpy as np

from .cells import Group
from .shards import Tokens
from .statistics import (
    FEWEST_OUTCOMES,
    RESAMPLES,
    Estimates,
    chances,
    estimates,
    few_outcomes,
    independent,
    share_estimates,
)


class Tally:
    """Counts of one group of cells at one level; it grows with the cells, and not with the tokens.

    Attributes:
        group: of the cells, C of them.
        reached: (C,) tokens that reached the level.
        kept: (C,) tokens that the level kept.
        documents: (C,) documents that have any of them.
    """

    def __init__(self, group: Group) -> None:
        cells = len(group.cells)
        self.group = group
        self.reached, self.kept, self.documents = (np.zeros(cells, dtype=np.int64) for _ in range(3))
        self._squares = np.zeros(cells, dtype=np.int64)
        self._reached, self._kept = (np.zeros((RESAMPLES, cells)) for _ in range(2))

    def add(self, tokens: Tokens, codes: np.ndarray, reached: np.ndarray, kept: np.ndarray) -> None:
        """Count a shard.

        Args:
            tokens: of the shard.
            codes: (N,) cell of each.
            reached: (N,) whether it reached the level.
            kept: (N,) whether the level kept it.
        """
        cells = len(self.group.cells) + 1  # the last one for tokens in none
        places = tokens.local * cells + codes
        shape = (len(tokens.keys), cells)
        counted_reached, counted_kept = (
            np.bincount(places[mask], minlength=shape[0] * shape[1]).reshape(shape)[:, :-1] for mask in (reached, kept)
        )
        self.reached += counted_reached.sum(0)
        self.kept += counted_kept.sum(0)
        self.documents += (counted_reached > 0).sum(0)
        self._squares += (counted_reached.astype(np.int64) ** 2).sum(0)
        self._reached += tokens.weights @ counted_reached
        self._kept += tokens.weights @ counted_kept

    def shares(self) -> Estimates:
        """(C,) share kept of the tokens that reached the level; NaN where none did."""
        return share_estimates(self.kept, self.reached, self._squares, self.documents, self.resampled)

    @property
    def resampled(self) -> np.ndarray:
        """(R, C) the shares of every resample."""
        return _share(self._kept, self._reached)

    def apart(self, whole: "Tally") -> "Apart":
        """How far each cell's share is from that of all other tokens.

        A cell with few tokens of one decision is tested as if all tokens of a document shared one: its own spread is
        unknown, and under the hypothesis that is tested its share is that of the others.

        Args:
            whole: tally of the same level with one cell, that of all tokens.
        """
        reached, kept = whole.reached - self.reached, whole.kept - self.kept
        others = _share(kept, reached)
        others_resampled = _share(whole._kept - self._kept, whole._reached - self._reached)
        difference = _share(self.kept, self.reached) - others
        documents = np.where(reached > 0, self.documents, 0)
        errors = estimates(difference, self.resampled - others_resampled, documents).errors
        size = independent(self.reached, self._squares)
        errors_others = estimates(others, others_resampled, documents).errors
        expected = size * np.minimum(others, 1 - others)
        unseen = np.sqrt(others * (1 - others) / size + errors_others**2)
        unseen = np.where(expected < FEWEST_OUTCOMES, np.nan, unseen)
        errors = np.where(few_outcomes(self.kept, self.reached), unseen, errors)
        return Apart(difference, chances(difference, errors, documents))

    def composition(self) -> tuple[Estimates, np.ndarray]:
        """(C,) each cell's share of all counted tokens, and (R, C) that of every resample."""
        resampled = _share(self._reached, self._reached.sum(1, keepdims=True))
        whole = np.full(len(self.reached), self.reached.sum())
        return estimates(_share(self.reached, whole), resampled, self.documents, 0, 1), resampled


@dataclass(frozen=True, eq=False)
class Apart:
    """Differences of cells from all other tokens.

    Attributes:
        differences: (C,) share minus that of the others; NaN where there are none.
        chances: (C,) p-values of there being no difference; NaN where too little is known for a test.
    """

    differences: np.ndarray
    chances: np.ndarray


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
    return found
