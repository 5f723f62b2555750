"""Statistics of a trace's routing."""

from dataclasses import dataclass

import numpy as np

from .parts import Routing

Z = 1.96  # of a normal distribution: 95% lie within so many standard deviations


@dataclass(frozen=True, eq=False)
class RuleOverlap:
    """The tokens that a level kept, compared with those that the rule of training would keep.

    In training a level keeps the highest scores, a nominal share of the tokens that reach it. Mixture-of-Depths does so
    with the highest router weights, which are its scores unless a predictor decides at inference.

    Attributes:
        kept: number of tokens that the level kept.
        highest: number of tokens that the rule of training keeps: see `subllm.routing.Router.quota`.
        overlap: Jaccard index of the two sets.
        differing: (N,) tokens in only one of the sets, in the order of the prompt.
    """

    kept: int
    highest: int
    overlap: float
    differing: np.ndarray


def rule_overlap(routing: Routing, level: int) -> RuleOverlap:
    """Compare the tokens that a level kept with those of the highest scores.

    Raises:
        AnalysisError: if the level's router does not score.
    """
    import torch  # noqa: PLC0415 - reading and drawing a trace needs no torch

    from subllm.routing import router_class  # noqa: PLC0415

    scores, kept = routing.scores_of(level), routing.kept[level - 1]
    reached = routing.reached[level - 1].nonzero()[0]
    router = router_class(str(routing.routers[level - 1]))
    count = int(router.quota(float(routing.retention_ratios[level - 1]), torch.tensor(len(reached))))
    order = np.argsort(-scores[reached], kind="stable")
    highest = np.zeros_like(kept)
    highest[reached[order[:count]]] = True
    return RuleOverlap(
        kept=int(kept.sum()),
        highest=count,
        overlap=float(jaccard(kept, highest)),
        differing=(kept != highest).nonzero()[0],
    )


def score_rank(routing: Routing, level: int, token: int) -> tuple[int, int]:
    """Rank of a token's score among those that reached a level's router, 1 for the highest; and their number.

    The token must have reached the router.

    Raises:
        AnalysisError: if the level's router does not score.
    """
    scores = routing.scores_of(level)
    return 1 + int((scores > scores[token]).sum()), int(routing.reached[level - 1].sum())


def run_lengths(routing: Routing, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the unbroken runs of kept and of dropped tokens, among those that reached a level's router.

    Returns:
        Two arrays of lengths, in the order of the prompt.
    """
    kept = routing.kept[level - 1][routing.reached[level - 1]]
    if not len(kept):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    edges = np.concatenate([[0], (kept[1:] != kept[:-1]).nonzero()[0] + 1, [len(kept)]])
    lengths = np.diff(edges)
    first = bool(kept[0])
    runs, gaps = lengths[::2], lengths[1::2]
    return (runs, gaps) if first else (gaps, runs)


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jaccard index of two sets (..., N) of bool, along the last axis; 1 where both are empty.

    >>> jaccard(np.array([[True, True, False]]), np.array([[True, False, False]])).tolist()
    [0.5]
    """
    either = (first | second).sum(-1)
    return np.where(either, (first & second).sum(-1) / np.maximum(either, 1), 1.0)


def wilson(shares: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) lower and (C,) upper ends of Wilson's intervals (1927), which have a width at shares of 0 and 1 as well.

    Args:
        shares: (C,).
        sizes: (C,) number of independent observations behind each, positive.
    """
    middle = shares + Z**2 / (2 * sizes)
    half = Z * np.sqrt(shares * (1 - shares) / sizes + Z**2 / (4 * sizes**2))
    scale = 1 + Z**2 / sizes
    return np.maximum((middle - half) / scale, 0), np.minimum((middle + half) / scale, 1)
