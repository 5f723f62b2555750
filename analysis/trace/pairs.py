"""Two traces compared: which tokens are the same, and where their routing differs."""

from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from .parts import Prompt, Routing
from .statistics import jaccard


@dataclass(frozen=True, eq=False)
class Pairing:
    """N pairs of equal tokens in two prompts.

    Attributes:
        first: (N,) indices into the first prompt, ascending.
        second: (N,) indices into the second prompt.
    """

    first: np.ndarray
    second: np.ndarray


def pair(first: Prompt, second: Prompt) -> Pairing:
    """Align the tokens of two prompts that have the same text, by the longest runs that they share.

    The prompts may differ, or be tokenised for different models.
    """
    a, b = first.pieces.tolist(), second.pieces.tolist()
    if a == b:
        return Pairing(np.arange(len(a)), np.arange(len(a)))
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return Pairing(
        np.concatenate([np.arange(block.a, block.a + block.size) for block in blocks]),
        np.concatenate([np.arange(block.b, block.b + block.size) for block in blocks]),
    )


def overlap(first: Routing, second: Routing, pairing: Pairing) -> pd.DataFrame:
    """Overlap of the routing of paired tokens, with a row for every level that both models have.

    Returns:
        The index is the level. Columns: `kept_first` and `kept_second` (share of the paired tokens that is kept),
        `both` (Jaccard index: kept by both over kept by either; NaN if neither keeps any), `differ` (number of tokens
        that only one keeps), `correlation` (Pearson's, of the scores of tokens that reached the level in both; NaN if a
        router does not score).
    """
    levels = _shared(first, second)
    rows = []
    for row in range(len(levels)):
        a, b = first.kept[row, pairing.first], second.kept[row, pairing.second]
        x, y = first.scores[row, pairing.first], second.scores[row, pairing.second]
        both = ~np.isnan(x) & ~np.isnan(y)
        spread = both.sum() > 2 and x[both].std() > 0 and y[both].std() > 0
        rows.append(
            {
                "kept_first": a.mean() if len(a) else np.nan,
                "kept_second": b.mean() if len(b) else np.nan,
                "both": float(jaccard(a, b)) if (a | b).any() else np.nan,
                "differ": int((a != b).sum()),
                "correlation": np.corrcoef(x[both], y[both])[0, 1] if spread else np.nan,
            }
        )
    columns = ["kept_first", "kept_second", "both", "differ", "correlation"]
    return pd.DataFrame(rows, index=pd.Index(levels, name="level"), columns=columns)


def differing(first: Routing, second: Routing, pairing: Pairing, level: int) -> np.ndarray:
    """Indices into the pairing of tokens that only one of the two models keeps at a level."""
    return np.flatnonzero(first.kept[level - 1, pairing.first] != second.kept[level - 1, pairing.second])


def _shared(first: Routing, second: Routing) -> range:
    """Levels that both models have."""
    return min(first.levels, second.levels, key=len)
