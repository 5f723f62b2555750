"""Balancer: keeps importance scores in a useful range during training by adding a small term to their gradient.

The term is as large as `GRADIENT_SCALE` of the root mean square of the gradient of the tokens' weights. Zipformer
takes that share of each score's own gradient; but a score below 0 or above 1 has none, since weights are clamped
there, and such scores are the ones that must be brought back. Short runs on English text showed that with each score's
own gradient whole levels stay outside the range, and that with the root mean square of the scores' gradients a level
that keeps nothing continues to keep nothing, because all of them are zero.
"""

from typing import Any

import torch
from torch import Tensor

GRADIENT_SCALE = 0.04
PROPORTION_MARGIN = 0.05
MEAN_ABSOLUTE_SCORE = (1.0, 4.0)


class _BalancedWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor | None, retention_ratio: float) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.mask = mask
        ctx.retention_ratio = retention_ratio
        return scores.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (scores,), (gradient,) = ctx.saved_tensors, gradients
        push = balancing_gradient(scores, ctx.mask, ctx.retention_ratio)
        valid = gradient if ctx.mask is None else gradient[ctx.mask]
        own = gradient * ((scores >= 0) & (scores <= 1))
        return own + valid.square().mean().sqrt() * push.to(gradient.dtype), None, None


def balancing_gradient(scores: Tensor, mask: Tensor | None, retention_ratio: float) -> Tensor:
    """Direction against which the balancer moves each score.

    All scores are moved alike, as strongly as the share of positive ones is off: by `GRADIENT_SCALE` from
    ρ ± `PROPORTION_MARGIN` on, by less inside. And all are stretched or shrunk by `GRADIENT_SCALE` where the mean
    absolute score is out of its range.

    Args:
        scores: (B, T) importance scores.
        mask: (B, T), False at padding, or None.
        retention_ratio: ρ; the proportion of positive scores is held within ρ ± 0.05.

    Returns:
        (B, T), each of the two terms with a root mean square of at most `GRADIENT_SCALE`; zero at padding.

    Source: `Balancer` in Zipformer (k2-fsa/icefall, zipformer/scaling.py), which the paper's section 3.1 uses. It takes
    the scores for normally distributed and the share from their mean and deviation; they are not, and shares that it
    takes for nominal are far below.
    """
    detached = scores.detach().float()
    valid = detached if mask is None else detached[mask]
    excess = ((valid > 0).float().mean() - retention_ratio) / PROPORTION_MARGIN
    size, (low, high) = valid.abs().mean(), MEAN_ABSOLUTE_SCORE
    stretch = (size > high).float() - (size < low).float()
    push = excess.clamp(-1, 1) + stretch * detached / valid.square().mean().clamp(min=1e-20).sqrt()
    return GRADIENT_SCALE * (push if mask is None else push * mask)


def balanced_weights(scores: Tensor, mask: Tensor | None, retention_ratio: float, probability: float) -> Tensor:
    """Weights a = clamp(s, 0, 1); the backward pass pushes scores into range with the given probability.

    Args:
        scores: (B, T) importance scores.
        mask: (B, T), False at padding, or None.
        retention_ratio: ρ, the nominal share of tokens that are kept.
        probability: probability that this call balances.

    Returns:
        (B, T) weights.
    """
    if not scores.requires_grad or torch.rand(()).item() >= probability:
        return scores.clamp(0, 1)
    return _BalancedWeights.apply(scores, mask, retention_ratio)
