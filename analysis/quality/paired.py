"""How far a difference between two runs over one text depends on the stretches of that text."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ANGLES = 1 << 15  # at which the density of Student's t is summed


class Interval(NamedTuple):
    """A mean and the interval that holds it.

    Attributes:
        mean: of the differences.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def paired_interval(differences: np.ndarray, chance: float = 0.05) -> Interval:
    """Interval of a mean difference between two runs over the same tokens, from the means of blocks of the text.

    Neighbouring tokens are not independent, but the means of long enough blocks nearly are: their number of tokens
    grows with N^(1/3) (Hall, Horowitz and Jing 1995). Where there are several draws, the variance of their means is
    added, with degrees of freedom after Satterthwaite (1946). What differs by draw and block is in both variances, so
    the interval of several draws is rather too wide. It says how much depends on the stretches of this text and on the
    draws, and nothing about other texts.

    Args:
        differences: (R, N) differences by draw and token; R is 1 where nothing is drawn.
        chance: that the interval misses, half of it on each side.

    Returns:
        The mean with its interval; all of them NaN for no tokens, and without bounds for one.
    """
    draws, tokens = differences.shape
    if not tokens:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(differences.mean())
    if tokens == 1:
        return Interval(mean, -float("inf"), float("inf"))
    length = min(round(2 * tokens ** (1 / 3)), tokens // 2)
    blocks = np.array_split(differences.mean(0), tokens // length)
    parts = [np.array([block.mean() for block in blocks]), *([differences.mean(1)] if draws > 1 else [])]
    variances = np.array([part.var(ddof=1) / len(part) for part in parts])
    freedoms = np.array([len(part) - 1 for part in parts])
    total = variances.sum()
    if not total:
        return Interval(mean, mean, mean)
    half = student_quantile(chance, total**2 / (variances**2 / freedoms).sum()) * total**0.5
    return Interval(mean, float(mean - half), float(mean + half))


def student_quantile(chance: float, freedom: float) -> float:
    """What the size of Student's t exceeds with some chance.

    t is the square root of the degrees of freedom n, times the tangent of an angle whose density goes with the cosine
    to the power of n - 1.

    Args:
        chance: on both sides together, between 0 and 1.
        freedom: degrees of freedom, at least 1; need not be whole.

    >>> round(student_quantile(0.05, 4), 3)
    2.776
    """
    angles, within = _angles(freedom)
    return float(freedom**0.5 * np.tan(np.interp(1 - chance, within, angles)))


def student_chance(size: float, freedom: float) -> float:
    """Chance that Student's t exceeds a size, on both sides together; the inverse of `student_quantile`.

    Args:
        size: at least 0.
        freedom: degrees of freedom, at least 1; need not be whole.

    >>> round(student_chance(2.776, 4), 3)
    0.05
    """
    angles, within = _angles(freedom)
    return float(1 - np.interp(np.arctan(size / freedom**0.5), angles, within))


@lru_cache(maxsize=16)
def _angles(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0 to a right one, and the chance that the size of t's angle is below each."""
    angles = np.linspace(0, np.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    within = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return angles, within / within[-1]
