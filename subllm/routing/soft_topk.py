"""The soft top-k of CoLT5 (arXiv 2303.09752, appendix C) by its closed form.

It maximises λ·s + ε H(λ) over weights 0 ≤ λ ≤ 1 whose sum is k. The paper iterates 50 times; but the solution is
λ = exp(min((s + a) / ε, 0)) with one number a for all scores, their water level: the m highest scores have weight 1,
and a is such that the others share what remains, k - m. One sort and one cumulative sum find m.
"""

import torch
from torch import Tensor


def water_level(scores: Tensor, k: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """Find the level a for each row.

    Args:
        scores: (N, T) scores.
        k: (N,) sum of the weights, above 0. Where it reaches the number of scores, all weights are 1.
        epsilon: ε, above 0: the larger, the softer.
        mask: (N, T) False at padding, or None.

    Returns:
        (N,), with a gradient to the scores.

    >>> level = water_level(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([2.0]), 1.0)
    >>> soft_weights(torch.tensor([[2.0, 0.0, 0.0]]), level[:, None], 1.0)
    tensor([[1.0000, 0.5000, 0.5000]])
    """
    count = torch.full_like(k, scores.shape[1]) if mask is None else mask.sum(1)
    ranked = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    ranked = ranked.sort(dim=1, descending=True).values / epsilon
    rest = ranked.flip(1).logcumsumexp(1).flip(1)  # [m]: of all scores but the m highest
    whole = torch.arange(scores.shape[1], device=scores.device)
    levels = (k[:, None] - whole).clamp(min=torch.finfo(ranked.dtype).tiny).log() - rest
    # m is the smallest number that leaves the next score a weight of at most 1, and less than k
    fits = (ranked + levels <= 0) & (whole < k[:, None])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    lowest = ranked.gather(1, (count[:, None] - 1).clamp(min=0).long())
    found = torch.where(k[:, None] >= count[:, None], -lowest, levels.gather(1, first))
    return epsilon * found[:, 0]


def soft_weights(scores: Tensor, level: Tensor | float, epsilon: float) -> Tensor:
    """The weights exp(min((s + a) / ε, 0)) of scores s of any shape at the level a."""
    return ((scores + level) / epsilon).clamp(max=0).exp()
