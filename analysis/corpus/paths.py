"""How often each token type takes each path through the levels: does the type decide, or its context?"""

import numpy as np

from ..trace.statistics import wilson
from .schema import CorpusRun
from .shards import Tokens
from .statistics import entropy

FEWEST = 20  # occurrences of a type whose entropy is estimated
FEWEST_DOCUMENTS = 10  # behind an interval of entropies
_PARTS = 10  # of the documents, each of which is left out once for the errors of the entropies
MOST_PATHS = 30  # that are told apart
MOST_TYPES = 40  # of each level, whose decision flips most


class PathCounts:
    """Number of tokens of each type and path.

    A path is the set of levels that keep a token, as the column `kept` has it. The table has a row of about 100 bytes
    for each type and path that occur together: few, and soon no more of them, with a few levels. With many levels that
    decide independently of each other the number of paths is not bounded in practice, and the table grows with the
    tokens: 16 of them give about 0.8 rows a token.

    Args:
        run: what `corpus.json` says.
    """

    def __init__(self, run: CorpusRun) -> None:
        self._run = run
        self._ids, self._kept = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros((0, _PARTS), dtype=np.int64)

    def add(self, tokens: Tokens) -> None:
        """Count a shard."""
        ids, kept = tokens.columns["id"].astype(np.int64), tokens.columns["kept"].astype(np.uint64)
        part = (tokens.keys % np.uint64(_PARTS)).astype(np.int64)[tokens.local]
        pairs = np.stack([np.concatenate([self._ids, ids]).astype(np.uint64), np.concatenate([self._kept, kept])])
        order = np.lexsort(pairs[::-1])
        pairs = pairs[:, order]
        new = np.ones(pairs.shape[1], dtype=np.bool_)
        new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(0)
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.cumsum(new) - 1
        before = len(self._ids)
        counts = np.bincount(numbers[before:] * _PARTS + part, minlength=int(new.sum()) * _PARTS).reshape(-1, _PARTS)
        counts[numbers[:before]] += self._counts
        self._ids, self._kept, self._counts = pairs[0, new].astype(np.int64), pairs[1, new], counts

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return int(self._counts.sum())

    def occurrences(self, vocabulary: int) -> np.ndarray:
        """(V,) occurrences of each id.

        Args:
            vocabulary: number of ids; ids beyond it count as well.
        """
        size = max(vocabulary, int(self._ids.max(initial=-1)) + 1)
        return np.bincount(self._ids, weights=self._counts.sum(1), minlength=size).astype(np.int64)

    def paths(self) -> np.ndarray:
        """Values of the column `kept`, the commonest first; the rarest ones of many are left out."""
        values, places = np.unique(self._kept, return_inverse=True)
        totals = np.bincount(places, weights=self._counts.sum(1), minlength=len(values))
        return values[np.lexsort((values, -totals))][:MOST_PATHS]

    def _decisions(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each pair reached a level, and whether the level kept it."""
        return self._run.reached(self._kept)[level - 1], self._run.kept(self._kept)[level - 1]

    def flipping(self, level: int) -> np.ndarray:
        """Ids of the types that a level both keeps and drops most evenly, as far as their number can tell.

        They are sorted by the lower end of Wilson's interval of the rarer decision's share.
        """
        reached, kept = self._decisions(level)
        totals = self._counts.sum(1)
        size = int(self._ids.max(initial=-1)) + 1
        all_of, kept_of = (
            np.bincount(self._ids[mask], weights=totals[mask], minlength=size) for mask in (reached, kept)
        )
        ids = np.flatnonzero(all_of >= FEWEST)
        count = all_of[ids]
        rarer = np.minimum(kept_of[ids], count - kept_of[ids]) / count
        bound, _ = wilson(rarer, count)
        order = np.lexsort((ids, -count, -bound))[:MOST_TYPES]
        return ids[order[rarer[order] > 0]]

    def entropies(self, level: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Bits of a decision, and of the decision given the type; and the share of the first that the type explains.

        Args:
            level: whose decision about the tokens that reach it is meant; 0 for the whole path.

        Returns:
            (3,) those numbers, (parts, 3) the same without one part of the documents each, of those parts that have
            tokens, and the numbers of tokens and of types behind them: types that occur often enough.
        """
        if level:
            reached, kept = self._decisions(level)
            ids, outcomes, counts = self._ids[reached], kept[reached].astype(np.uint64), self._counts[reached]
        else:
            ids, outcomes, counts = self._ids, self._kept, self._counts
        total = np.bincount(ids, weights=counts.sum(1))
        often = total[ids] >= FEWEST if len(ids) else np.zeros(0, dtype=np.bool_)
        ids, outcomes, counts = ids[often], outcomes[often], counts[often]
        whole = counts.sum(1)
        parts = np.flatnonzero(self._counts.any(0)).tolist()
        without = np.stack([_entropies(ids, outcomes, whole - counts[:, part]) for part in parts])
        return _entropies(ids, outcomes, whole), without, int(whole.sum()), len(np.unique(ids))


def _entropies(ids: np.ndarray, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    seen = counts > 0
    ids, outcomes, counts = ids[seen], outcomes[seen], counts[seen].astype(np.float64)
    if not len(ids):
        return np.full(3, np.nan)
    _, places = np.unique(outcomes, return_inverse=True)
    pairs, pair_of = np.unique(np.stack([ids.astype(np.uint64), outcomes]), axis=1, return_inverse=True)
    own = entropy(np.bincount(places, weights=counts))
    given = entropy(np.bincount(pair_of.ravel(), weights=counts), pairs[0])
    return np.array([own, given, 1 - given / own if own > 0 else np.nan])


def jackknife(value: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Standard errors from leaving out one part after another (the delete-a-group jackknife).

    Args:
        value: (C,) of all.
        without: (parts, C) without one part each.
    """
    parts = len(without)
    found: np.ndarray = np.sqrt((parts - 1) / parts * ((without - value) ** 2).sum(0))
    return found
