"""What goes with a level's decisions and scores: rank correlations, the same given token type and place, and AUC.

Ranks are those of the recorded numbers, which are rounded to half precision; frequency and place are not rounded. In a
resample of the documents ranks are others; to first order, correlations and AUC have these, while partial correlations
have those of the whole corpus, which makes their intervals up to about 15% too narrow.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .cells import Group
from .ranks import CODES, codes, grades
from .schema import CorpusRun
from .shards import Tokens
from .statistics import RESAMPLES, Estimates, estimates

FIFTHS = ("1", "2", "3", "4", "5")
"""Cells of a variable: the lowest fifth of its values, up to the highest one."""

_PLACE, _FREQUENCY = "place", "frequency"


class Associated(NamedTuple):
    """A number of every variable.

    Attributes:
        measure: "correlation", "partial" or "auc".
        found: (V,) with intervals.
        resampled: (R, V).
        neutral: value if there is no association.
    """

    measure: str
    found: Estimates
    resampled: np.ndarray
    neutral: float


def optional_columns(run: CorpusRun) -> list[str]:
    """Columns that only some runs have; they are NaN throughout where nothing could be measured."""
    optional = [("dense_surprisal", bool(run.options.dense)), ("attention", run.options.attention)]
    return [name for name, there in optional if there]


def columns_of(run: CorpusRun) -> list[str]:
    """Columns that the variables are read from."""
    numbers = range(1, run.num_levels + 1)
    own = ["surprisal", *optional_columns(run), "entropy"]
    return [*own, *(f"norm_{level}" for level in numbers), *(f"score_{level}" for level in numbers)]


class Association:
    """One level's decisions and scores against V variables, counted in three passes over all shards, in this order:
    `rank`, `relate`, `resample`. It grows with the vocabulary, and not with the tokens.

    Only tokens that reached the level and have a value of every variable count.

    Args:
        run: what `corpus.json` says.
        level: from 1.
        frequencies: occurrences of each id.
        optional: those of `optional_columns` that have values; one without any would leave no token.

    Attributes:
        variables: their names; "norm" is that of the stream before the level.
        tokens: number of tokens that count.
        documents: number of documents that have any.
    """  # noqa: D205 - the passes are its summary

    def __init__(self, run: CorpusRun, level: int, frequencies: np.ndarray, optional: Sequence[str]) -> None:
        self.level = level
        self.variables = ["surprisal", *optional, "entropy", "norm", _FREQUENCY, _PLACE]
        self.scored = not np.isnan(run.levels.thresholds[level - 1])
        self.tokens = self.documents = 0
        self._window = run.options.window
        _, order = np.unique(frequencies, return_inverse=True)
        self._frequencies = np.minimum(order, CODES - 1).astype(np.uint16)  # more of them need 10^9 tokens
        size = len(self.variables) + 1  # the score comes first
        self._counts = np.zeros((2, size, CODES), dtype=np.int64)  # of dropped and kept tokens
        self._sums = np.zeros((len(frequencies), size))
        self._of_type = np.zeros(len(frequencies), dtype=np.int64)
        self._products = np.zeros((size, size))
        self._resampled: np.ndarray | None = None
        self._sums_of: np.ndarray | None = None
        self._last: tuple[Tokens, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def _values(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the tokens that count, (N, V + 1) codes of score and variables, and (N,) whether they were kept."""
        if self._last is None or self._last[0] is not tokens:
            self._last = (tokens, self._read(tokens))
        return self._last[1]

    def _read(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = tokens.columns
        scores = columns[f"score_{self.level}"] if self.scored else np.zeros(len(tokens), dtype=np.float16)
        values = [scores]
        for name in self.variables:
            if name == _PLACE:
                place = columns["position"].astype(np.int64) % self._window
                values.append((place * CODES // self._window if self._window > CODES else place).astype(np.uint16))
            elif name == _FREQUENCY:
                values.append(self._frequencies[columns["id"]])
            else:
                values.append(columns[f"norm_{self.level}" if name == "norm" else name])
        counting = tokens.reached[self.level - 1].copy()
        for each in values:
            counting &= ~np.isnan(each)
        rows = np.flatnonzero(counting)
        found = np.stack([codes(each[rows]) for each in values], axis=1)
        return rows, found, tokens.kept[self.level - 1][rows]

    def rank(self, tokens: Tokens) -> None:
        """First pass: how often each value occurs."""
        rows, found, kept = self._values(tokens)
        self.tokens += len(rows)
        self.documents += len(np.unique(tokens.local[rows]))
        for decision in (0, 1):
            part = found[kept == decision]
            for column in range(part.shape[1]):
                self._counts[decision, column] += np.bincount(part[:, column], minlength=CODES)

    def ranked(self) -> None:
        """End the first pass."""
        self._grades = grades(self._counts.sum(0)) - 0.5  # so that their mean is 0
        self._among = grades(self._counts[0]), grades(self._counts[1])  # dropped and kept tokens
        del self._counts
        # of each variable, by the code of the score, and of the score, by the code of each variable
        self._sums_by_code = np.zeros((2, len(self.variables), CODES))

    def _graded(self, found: np.ndarray) -> np.ndarray:
        return np.stack([row[column] for row, column in zip(self._grades, found.T, strict=True)], axis=1)

    def fifths(self) -> Iterator[Group]:
        """Groups of the lowest to the highest fifth of every variable; call `ranked` first."""
        for number, name in enumerate(self.variables, 1):
            yield Group(f"fifth {name}", FIFTHS, partial(self._fifth, number=number))

    def _fifth(self, tokens: Tokens, number: int) -> np.ndarray:
        rows, found, _ = self._values(tokens)
        fifth = np.full(len(tokens), len(FIFTHS))
        above = (self._grades[number][found[:, number]] + 0.5) * len(FIFTHS)
        fifth[rows] = np.minimum(above, len(FIFTHS) - 1).astype(np.int64)
        return fifth

    def relate(self, tokens: Tokens) -> None:
        """Second pass: means of every token type, and products."""
        rows, found, _ = self._values(tokens)
        graded, ids = self._graded(found), tokens.columns["id"][rows]
        self._of_type += np.bincount(ids, minlength=len(self._of_type))
        for column in range(graded.shape[1]):
            self._sums[:, column] += np.bincount(ids, weights=graded[:, column], minlength=len(self._of_type))
        self._products += graded.T @ graded
        for number in range(1, graded.shape[1]) if self.scored else ():
            for side, (by, of) in enumerate(((0, number), (number, 0))):
                self._sums_by_code[side, number - 1] += np.bincount(found[:, by], graded[:, of], CODES)

    def related(self) -> None:
        """End the second pass: within types, everything is a multiple of the place, and a rest."""
        self._means = self._sums / np.maximum(self._of_type, 1)[:, None]
        within = self._products - self._sums.T @ self._means
        self._slopes = within[-1] / within[-1, -1] if within[-1, -1] > 1e-9 else np.zeros(len(within))
        self._rest = np.diag(within) - self._slopes**2 * within[-1, -1]
        sums = self._sums_by_code
        above = sums.sum(-1, keepdims=True) - sums.cumsum(-1) + sums / 2  # what a token raises the rank of
        self._raised = (above / max(self.tokens, 1)).astype(np.float32)
        del self._sums_by_code, self._sums, self._products

    def resample(self, tokens: Tokens) -> None:
        """Third pass: sums of every resample."""
        rows, found, kept = self._values(tokens)
        graded = self._graded(found)
        inner = graded - self._means[tokens.columns["id"][rows]]
        inner -= inner[:, -1:] * self._slopes
        below, above = (
            np.stack([row[column] for row, column in zip(among, found.T, strict=True)], axis=1)[:, 1:]
            for among in self._among
        )
        pieces = []
        for each in (graded, inner):
            own, others = each[:, :1], each[:, 1:]
            pieces += [own * others, others**2, np.broadcast_to(own**2, others.shape)]
        pieces += [np.where(kept[:, None], below, 0), np.where(kept[:, None], 0, 1 - above)]
        pieces += [np.broadcast_to(each[:, None], below.shape) for each in (kept, ~kept)]
        by_score, by_variable = self._raised
        pieces += [by_score[:, found[:, 0]].T + np.take_along_axis(by_variable.T, found[:, 1:].astype(np.int64), 0)]
        values = np.concatenate(pieces, axis=1)
        full = np.zeros((len(tokens.keys), values.shape[1]))
        if len(rows):
            own_documents, starts = np.unique(tokens.local[rows], return_index=True)
            full[own_documents] = np.add.reduceat(values, starts, axis=0)
        if self._resampled is None or self._sums_of is None:
            self._resampled, self._sums_of = np.zeros((RESAMPLES, full.shape[1])), np.zeros(full.shape[1])
        self._resampled += tokens.weights @ full
        self._sums_of += full.sum(0)

    def measures(self) -> Iterator[Associated]:
        """The numbers; correlations only if the router scores."""
        if self._resampled is None or self._sums_of is None or not self.tokens:
            return
        count = len(self.variables)
        whole, resampled = (each.reshape(len(each), -1, count) for each in (self._sums_of[None], self._resampled))
        documents = np.full(count, self.documents)
        if self.scored:
            for measure, first in (("correlation", 0), ("partial", 3)):
                nothing = np.zeros(count, dtype=np.bool_)
                if measure == "partial":  # what type and place say altogether has no rest
                    nothing = (self._rest[1:] < 1e-6 * self.tokens) | (self._rest[0] < 1e-6 * self.tokens)
                value, others = (_correlation(each[:, first : first + 3], nothing) for each in (whole, resampled))
                if measure == "correlation":
                    others = _ranked_again(whole, resampled)
                yield Associated(measure, estimates(value[0], others, documents, -1, 1), others, 0)
        (below,), (above,) = _halves(whole[:, 6:])
        value, others = (below + above) / 2, sum(_halves(resampled[:, 6:])) - (below + above) / 2
        yield Associated("auc", estimates(value, others, documents, 0, 1), others, 0.5)


def _correlation(sums: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """(R, V) correlations from (R, 3, V) sums of products and of squares."""
    product, first, second = sums[:, 0], sums[:, 1], sums[:, 2]
    scale = np.sqrt(first * second)
    found: np.ndarray = np.where(~nothing & (scale > 0), product / np.where(scale > 0, scale, 1), np.nan)
    return found


def _ranked_again(whole: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """(R, V) rank correlations of resamples with ranks of their own, to first order, from sums of pieces.

    A token adds the product of its own centred ranks, and what it adds to the ranks of all tokens above it.
    """
    (product, first, second), count = whole[0, :3], whole[0, 8] + whole[0, 9]
    scale = np.sqrt(first * second)
    counts = resampled[:, 8] + resampled[:, 9]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = ((resampled[:, 0] + resampled[:, 10]) * (count / counts) - 2 * product) / scale
    return np.where(np.isfinite(found), found, np.nan)


def _halves(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, V) twice, from (R, 4, V) sums: the chance that a kept token has the higher value than a dropped one.

    It is counted over the kept tokens, and over the dropped ones; both are the same for the whole corpus. To first
    order, a resample's is the sum of both less that of the whole corpus (DeLong et al. 1988).
    """
    below, above, kept, dropped = (sums[:, number] for number in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        return below / kept, above / dropped
