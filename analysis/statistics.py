"""Numbers about a trace's routing, beyond what the trace holds."""

import math
from dataclasses import dataclass

import numpy as np

from .trace import Trace


@dataclass(frozen=True, eq=False)
class RuleOverlap:
    """The rule of inference (score above 0) against the rule of training (the highest scores, a nominal share).

    Attributes:
        by_threshold: tokens that the threshold keeps.
        by_rank: tokens that the nominal share keeps, ceil(ρT).
        both: tokens that both keep.
        differing: (N,) tokens that only one of them keeps, in the order of the prompt.
    """

    by_threshold: int
    by_rank: int
    both: int
    differing: np.ndarray

    @property
    def overlap(self) -> float:
        """Tokens that both keep over tokens that either keeps; 1 where neither keeps any."""
        either = self.by_threshold + self.by_rank - self.both
        return self.both / either if either else 1.0


def rule_overlap(trace: Trace, span: int) -> RuleOverlap:
    """How far the per-token threshold is from the top share, on the tokens that reached a span.

    Args:
        trace: of a prompt.
        span: number of the span.
    """
    reached = trace.present[span].nonzero()[0]
    count = math.ceil(round(float(trace.retention_ratios[span]) * len(reached), 6))
    order = np.argsort(-trace.scores[span][reached], kind="stable")
    top = np.zeros(trace.num_tokens, dtype=bool)
    top[reached[order[:count]]] = True
    kept = trace.kept[span]
    return RuleOverlap(int(kept.sum()), int(top.sum()), int((kept & top).sum()), (kept != top).nonzero()[0])


def score_rank(trace: Trace, span: int, token: int) -> tuple[int, int]:
    """Place of a token's score among those that reached a span, 1 for the highest; and how many reached it.

    Args:
        trace: of a prompt.
        span: number of the span.
        token: index into the prompt.
    """
    scores = trace.scores[span]
    return 1 + int((scores > scores[token]).sum()), int(trace.present[span].sum())


def run_lengths(trace: Trace, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the unbroken runs of kept tokens, and of the gaps between them, among those that reached a span.

    Args:
        trace: of a prompt.
        span: number of the span.

    Returns:
        Two arrays of lengths, in the order of the prompt.
    """
    kept = trace.kept[span][trace.present[span]]
    if not len(kept):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    edges = np.concatenate([[0], (kept[1:] != kept[:-1]).nonzero()[0] + 1, [len(kept)]])
    lengths = np.diff(edges)
    first = bool(kept[0])
    runs, gaps = lengths[::2], lengths[1::2]
    return (runs, gaps) if first else (gaps, runs)
