"""KL divergence between the next-token distributions of two models."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 128  # number of rows whose distributions are in memory at once


def divergence_of(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(...) KL divergence from the reference's distributions, in nats; both are log-probabilities (..., V)."""
    return F.kl_div(logprobs, reference, reduction="none", log_target=True).sum(-1)


class _HeadDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, head: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            expected, actual = ((states[rows].to(head.dtype) @ head.T).float() for states in (target, hidden))  # (N, V)
            for logits in (expected, actual):
                logits -= logits.logsumexp(-1, keepdim=True)
            probabilities = expected.exp()
            total += probabilities.flatten() @ (expected.sub_(actual)).flatten()
            gradient[rows] = actual.exp_().sub_(probabilities).to(head.dtype) @ head
        ctx.save_for_backward(gradient.div_(len(hidden)))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None


def head_divergence(hidden: Tensor, target: Tensor, head: Tensor) -> Tensor:
    """Mean KL divergence of the distributions behind `hidden` from those behind `target`, nats per row.

    The distributions and the gradient are computed a few rows at a time, so N · V numbers are never in memory.
    The gradient reaches `hidden` only.

    Args:
        hidden: (N, D) last hidden states.
        target: (N, D) last hidden states of the reference.
        head: (V, D) weight of the shared head; logits are computed in its dtype.

    Returns:
        Scalar, float32.
    """
    return _HeadDivergence.apply(hidden, target, head)
