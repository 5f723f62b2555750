"""Balancer: keeps importance scores in a useful range during training by adding a small term to their gradient.

The term is as large as `GRADIENT_SCALE` of the root mean square of the gradient of the tokens' weights. Zipformer
takes that share of each score's own gradient; but a score below 0 or above 1 has none, since weights are clamped
there, and such scores are the ones that must be brought back. Short runs on English text showed that with each score's
own gradient whole levels stay outside the range, and that with the root mean square of the scores' gradients a level
that keeps nothing continues to keep nothing, because all of them are zero.
"""

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

GRADIENT_SCALE = 0.04
PROPORTION_MARGIN = 0.05
MEAN_ABSOLUTE_SCORE = (1.0, 4.0)
_RMS_PER_MEAN_ABSOLUTE = math.sqrt(math.pi / 2)  # of a normal distribution


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
    """Direction in which the balancer pushes each score, scaled to a root mean square of `GRADIENT_SCALE`.

    The scores are treated as normally distributed: a proportion p of positive ones is a mean of Φ⁻¹(p) standard
    deviations, and a mean absolute value of m is a root mean square of m·sqrt(π/2). The loss is the distance of the
    mean (in standard deviations) and of the log root mean square from their allowed ranges; zero inside them.

    Args:
        scores: (B, T) importance scores.
        mask: (B, T), False at padding, or None.
        retention_ratio: ρ; the proportion of positive scores is held within ρ ± 0.05.

    Returns:
        (B, T) gradient of that loss, normalised; zero where nothing needs to move.

    Source: `Balancer` in Zipformer (k2-fsa/icefall, zipformer/scaling.py), which the paper's section 3.1 uses.
    """
    limits = [min(max(retention_ratio + sign * PROPORTION_MARGIN, 1e-3), 1 - 1e-3) for sign in (-1, 1)]
    low_mean, high_mean = (NormalDist().inv_cdf(p) for p in limits)
    low_rms, high_rms = (_RMS_PER_MEAN_ABSOLUTE * m for m in MEAN_ABSOLUTE_SCORE)
    with torch.enable_grad(), torch.autocast(scores.device.type, enabled=False):
        leaf = scores.detach().float().requires_grad_(True)
        valid = leaf if mask is None else leaf[mask]
        second_moment = valid.square().mean()
        deviation = (second_moment - valid.mean().square()).clamp(min=1e-20).sqrt()
        mean = valid.mean() / deviation
        rms = second_moment.clamp(min=1e-20).sqrt()
        loss = (mean - mean.clamp(low_mean, high_mean)).abs() + (rms.clamp(low_rms, high_rms) / rms).log().abs()
        (push,) = torch.autograd.grad(loss, leaf)
    root_mean_square = (push if mask is None else push[mask]).square().mean().sqrt().clamp(min=1e-20)
    return push * (GRADIENT_SCALE / root_mean_square)


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
