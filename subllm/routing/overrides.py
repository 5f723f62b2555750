"""Overrides that serve more than one purpose: a wanted retention, and a replay of recorded decisions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .router import Router
from .selection import LevelTokens, Selection


class AtRetention:
    """Keeps a wanted share of the tokens that reach each level, by moving its threshold.

    The threshold is set in the first pass and stays the same afterwards.

    Args:
        retention: share of the tokens to keep, 0 to 1.

    Attributes:
        thresholds: threshold of each level that has been reached.
    """

    def __init__(self, retention: float) -> None:
        self._retention = retention
        self.thresholds: dict[int, float] = {}

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Decide which tokens enter a level."""
        if not router.scores_tokens:
            return router.select(tokens, training=False)
        scores = router.score(tokens.hidden_states)
        if level not in self.thresholds:
            present = scores.flatten() if tokens.mask is None else scores[tokens.mask]
            self.thresholds[level] = threshold_for(present, self._retention)
        return router.decide(tokens, scores, self.thresholds[level])


class Replay:
    """Repeats the decisions that were recorded for each token of a prompt.

    Args:
        kept: (S, T) whether each level keeps each token of the prompt.
        weights: (S, T) the recorded weights; if None, the routers weigh the kept tokens by their scores.
    """

    def __init__(self, kept: Tensor | Sequence[Tensor], weights: Tensor | Sequence[Tensor] | None) -> None:
        self._kept, self._weights = kept, weights

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Decide which tokens enter a level."""
        kept = self._kept[level - 1][tokens.positions]
        weights = router.weigh(tokens) if self._weights is None else self._weights[level - 1][tokens.positions]
        return Selection.of(tokens, kept, weights, everywhere=router.merges_tokens)


def threshold_for(scores: Tensor, retention: float) -> float:
    """Threshold that a given share of the scores exceeds, halfway between the two scores next to it.

    Args:
        scores: (N,) scores.
        retention: share of the scores that exceed the threshold, 0 to 1.

    >>> threshold_for(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)
    2.5
    """
    if not scores.numel():
        return 0.0
    ranked = scores.sort().values
    dropped = round((1 - retention) * ranked.numel())
    below = ranked[dropped - 1] if dropped else ranked[0] - 1
    above = ranked[dropped] if dropped < ranked.numel() else ranked[-1] + 1
    return torch.stack([below, above]).mean().item()
