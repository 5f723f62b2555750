"""Two traces side by side: tokens aligned, and where their routing and predictions differ."""

from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from .trace import Trace


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which tokens of two prompts are the same; N of them.

    Attributes:
        first: (N,) indices into the first prompt, ascending.
        second: (N,) indices into the second.
    """

    first: np.ndarray
    second: np.ndarray


def pair(first: Trace, second: Trace) -> Pairing:
    """Align the tokens of two prompts, by the longest runs that they share.

    Args:
        first: of one prompt.
        second: of the same prompt, or of another; by another checkpoint, or the same.

    Returns:
        Tokens with the same text, in order.
    """
    a, b = first.pieces.tolist(), second.pieces.tolist()
    if a == b:
        return Pairing(np.arange(len(a)), np.arange(len(a)))
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return Pairing(
        np.concatenate([np.arange(block.a, block.a + block.size) for block in blocks]),
        np.concatenate([np.arange(block.b, block.b + block.size) for block in blocks]),
    )


def overlap(first: Trace, second: Trace, pairing: Pairing) -> pd.DataFrame:
    """How alike the routing of paired tokens is, a row for every level that both have.

    Args:
        first: a trace.
        second: another.
        pairing: of their tokens.

    Returns:
        Columns: `kept_first` and `kept_second` (share kept, of all paired tokens), `both` (Jaccard index: kept by both
        over kept by either), `differ` (tokens that one keeps and the other does not), `correlation` (Pearson's, of the
        scores of tokens that reached the level in both).
    """
    rows = []
    for span in range(min(first.num_spans, second.num_spans)):
        a, b = first.kept[span, pairing.first], second.kept[span, pairing.second]
        x, y = first.scores[span, pairing.first], second.scores[span, pairing.second]
        both = ~np.isnan(x) & ~np.isnan(y)
        spread = both.sum() > 2 and x[both].std() > 0 and y[both].std() > 0
        rows.append(
            {
                "kept_first": a.mean() if len(a) else np.nan,
                "kept_second": b.mean() if len(b) else np.nan,
                "both": (a & b).sum() / max((a | b).sum(), 1),
                "differ": int((a != b).sum()),
                "correlation": np.corrcoef(x[both], y[both])[0, 1] if spread else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=["kept_first", "kept_second", "both", "differ", "correlation"])


def differing(first: Trace, second: Trace, pairing: Pairing) -> list[np.ndarray]:
    """Indices into the pairing, for every level that both have, of tokens that only one of the two keeps.

    Args:
        first: a trace.
        second: another.
        pairing: of their tokens.
    """
    return [
        np.flatnonzero(first.kept[span, pairing.first] != second.kept[span, pairing.second])
        for span in range(min(first.num_spans, second.num_spans))
    ]
