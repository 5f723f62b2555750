"""Statistics of tokens that come in documents: what lies in one document is not independent, documents nearly are.

Letters: N documents, R resamples, C cells.
"""

from typing import NamedTuple

import numpy as np

from ..quality.paired import student_chance, student_quantile
from ..trace.statistics import Z, wilson

RESAMPLES = 200
FALSE_DISCOVERIES = 0.05  # share of the marked results that may be marked by chance
FEWEST_DOCUMENTS = 20  # of a test: the spread between fewer documents is not known well enough
FEWEST_OUTCOMES = 5  # kept and dropped tokens of a cell whose spread can be resampled
_CHANCE = 0.05  # that an interval misses
_POISSON = np.cumsum(np.exp(-1) / np.array([1, 1, 2, 6, 24, 120, 720, 5040]))  # P(X <= k) for a mean of 1
_GOLDEN = 0x9E3779B97F4A7C15


class Estimates(NamedTuple):
    """Numbers with the intervals that the resamples give them.

    Attributes:
        values: (C,).
        low: (C,) lower ends; NaN where fewer than two documents say anything.
        high: (C,) upper ends, likewise.
        errors: (C,) standard errors, likewise.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    errors: np.ndarray


def mixed(keys: np.ndarray) -> np.ndarray:
    """Pseudo-random 64 bits for every 64-bit key, always the same (the finaliser of SplitMix64).

    Args:
        keys: uint64, of any shape.
    """
    keys = np.array(keys, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    return np.asarray(keys ^ (keys >> np.uint64(31)))


def resample_weights(documents: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """(N, R) how often each resample has each document: independent draws from a Poisson distribution of mean 1.

    The bootstrap over documents, without knowing how many there will be (Chamandy et al. 2012, "Estimating uncertainty
    for massive data streams"). A document gets the same weights in every corpus, so that differences between two
    checkpoints over the same documents are those of pairs.

    Args:
        documents: (N,) uint64 keys of the documents.
        resamples: R.
    """
    numbers = np.arange(1, resamples + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    uniform = (mixed(documents[:, None] + numbers) >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)


def estimates(
    values: np.ndarray, resampled: np.ndarray, documents: np.ndarray, low: float = -np.inf, high: float = np.inf
) -> Estimates:
    """Intervals from the spread of the resamples, with Student's t, since there may be few documents.

    Args:
        values: (C,) numbers of the whole corpus.
        resampled: (R, C) the same of every resample; NaN where it lacks the cell.
        documents: (C,) number of documents that say something about each number.
        low: least value possible.
        high: greatest value possible.
    """
    known = np.isfinite(resampled)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, resampled, 0).sum(0) / count
    variances = np.where(known, (resampled - mean) ** 2, 0).sum(0) / np.maximum(count - 1, 1)
    few = documents < 2
    errors = np.sqrt(variances * np.where(few, np.nan, documents / np.maximum(documents - 1, 1)))
    half = errors * quantiles(documents)
    return Estimates(values, np.maximum(values - half, low), np.minimum(values + half, high), errors)


def chances(values: np.ndarray, errors: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(C,) chance of values at least as far from 0 if the true ones were 0 (two-sided).

    It is NaN where nothing can be tested: without an error, or one of 0, which says that the resamples have seen no
    difference and not that there is none; and with fewer than `FEWEST_DOCUMENTS`.

    Args:
        values: (C,).
        errors: (C,) their standard errors.
        documents: (C,) number of documents behind each.
    """
    found = np.full(len(values), np.nan)
    possible = np.isfinite(errors) & np.isfinite(values) & (errors > 0) & (documents >= FEWEST_DOCUMENTS)
    for index in np.flatnonzero(possible).tolist():
        found[index] = student_chance(abs(values[index]) / errors[index], documents[index] - 1)
    return found


def few_outcomes(kept: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """(C,) whether so few tokens have one of the two decisions that resamples cannot say how their share varies.

    Args:
        kept: (C,) number of kept tokens.
        reached: (C,) number of tokens.
    """
    return np.minimum(kept, reached - kept) < FEWEST_OUTCOMES


def share_estimates(
    kept: np.ndarray, reached: np.ndarray, squares: np.ndarray, documents: np.ndarray, resampled: np.ndarray
) -> Estimates:
    """Intervals of shares, rare cells included, whose resamples may all say the same.

    Where a cell has few documents, its interval is at least that of as many independent tokens (`wilson`). Where it has
    few tokens of one decision, its interval is that of `independent` observations.

    Args:
        kept: (C,) number of kept tokens.
        reached: (C,) number of tokens.
        squares: (C,) sum over documents of the squared number of tokens.
        documents: (C,) number of documents that have any.
        resampled: (R, C) shares of the resamples.
    """
    there = np.maximum(reached, 1)
    shares = np.where(reached > 0, kept / there, np.nan)
    found = estimates(shares, resampled, documents, 0, 1)
    few, rare = few_outcomes(kept, reached), documents < FEWEST_DOCUMENTS
    low, high = wilson(shares, np.where(few, independent(reached, squares), there))
    floor = np.where(few, (high - low) / (2 * Z), found.errors)
    low = np.where(few, low, np.where(rare, np.minimum(low, found.low), found.low))
    high = np.where(few, high, np.where(rare, np.maximum(high, found.high), found.high))
    alone = documents < 2
    return Estimates(shares, *(np.where(alone, np.nan, each) for each in (low, high, floor)))


def independent(reached: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """(C,) number of independent observations if all tokens of a document shared one decision (Kish 1965); at least 1.

    Args:
        reached: (C,) number of tokens.
        squares: (C,) sum over documents of the squared number of tokens.
    """
    return np.maximum(reached.astype(np.float64) ** 2 / np.maximum(squares, 1), 1)


def quantiles(documents: np.ndarray) -> np.ndarray:
    """(C,) what Student's t exceeds with the chance that an interval misses, for numbers (C,) of documents."""
    counts, places = np.unique(np.maximum(documents - 1, 1), return_inverse=True)
    return np.array([student_quantile(_CHANCE, int(count)) for count in counts], dtype=np.float64)[places]


def benjamini_hochberg(chances: np.ndarray, rate: float = FALSE_DISCOVERIES) -> np.ndarray:
    """Which of many tests are marked, so that at most a share of the marks is expected to be there by chance.

    Benjamini and Hochberg 1995, "Controlling the false discovery rate". A test that was not possible is not marked, and
    does not count.

    Args:
        chances: p-values, of any shape; NaN where there was no test.
        rate: that share.

    >>> benjamini_hochberg(np.array([0.001, 0.02, 0.04, 0.9, np.nan])).tolist()
    [True, True, False, False, False]
    """
    flat = chances.ravel()
    order = np.argsort(flat, kind="stable")[: np.isfinite(flat).sum()]  # NaN comes last
    passing = np.flatnonzero(flat[order] <= rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    marked = np.zeros(flat.shape, dtype=bool)
    if len(passing):
        marked[order[: passing[-1] + 1]] = True
    return marked.reshape(chances.shape)


def entropy(counts: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Entropy in bits of what was counted, or its mean over groups, with the correction of Miller and Madow (1955).

    Small groups look more certain than they are; the correction adds (number of outcomes - 1) / (2 observations) nats
    to each group. It does not suffice for groups of fewer than about 20 observations.

    Args:
        counts: (C,) observations of each outcome, positive.
        groups: (C,) number of the group of each; None if there is one. The mean weighs groups by their observations.

    >>> entropy(np.array([500, 500, 1000]), np.array([0, 0, 1])) < entropy(np.array([500, 500, 1000]))
    True
    """
    if not len(counts):
        return float("nan")
    groups = np.zeros(len(counts), dtype=np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes, outcomes = np.bincount(groups, weights=counts), np.bincount(groups)
    shares = counts / sizes[groups]
    each = np.bincount(groups, weights=-shares * np.log(shares)) + (outcomes - 1) / (2 * sizes)
    return float((each * sizes).sum() / sizes.sum() / np.log(2))
