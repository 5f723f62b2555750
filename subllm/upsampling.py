"""Upsampling and bypass: bring a span's result back to the full sequence."""

from typing import Any

import torch
from torch import Tensor, nn

from .subsampling import Selection


def upsample(processed: Tensor, before: Tensor, selection: Selection) -> Tensor:
    """What the span contributes to each token of its parent sequence: a (f(x) - x) at kept tokens, 0 at dropped ones.

    Args:
        processed: (B, K, D) f(x), the kept tokens after the span.
        before: (B, K, D) x, the same tokens before it.
        selection: which tokens those are, and their weights a.

    Returns:
        (B, K, D) weighted differences; `scatter_add` puts them in place.
    """
    return (processed - before) * selection.weights[..., None].to(processed.dtype)


def gather_tokens(hidden_states: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, K, D) at `indices` (B, K) of `hidden_states` (B, T, D)."""
    if hidden_states.shape[0] == 1:
        return hidden_states.index_select(1, indices[0])
    return hidden_states.gather(1, indices[..., None].expand(-1, -1, hidden_states.shape[-1]))


def scatter_add(hidden_states: Tensor, selection: Selection, values: Tensor) -> Tensor:
    """`hidden_states` (B, T, D) with `values` (B, K, D) added at the selected tokens; padding adds nothing."""
    if hidden_states.shape[0] == 1:
        return hidden_states.index_add(1, selection.indices[0], values)
    if selection.mask is not None:
        values = values.masked_fill(~selection.mask[..., None], 0)
    return hidden_states.scatter_add(1, selection.indices[..., None].expand_as(values), values)


class _LimitParameter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, minimum: float, maximum: float) -> Tensor:
        ctx.save_for_backward(parameter)
        ctx.limits = (minimum, maximum)
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (parameter,), (gradient,) = ctx.saved_tensors, gradients
        minimum, maximum = ctx.limits
        outwards = ((parameter < minimum) & (gradient > 0)) | ((parameter > maximum) & (gradient < 0))
        return torch.where(outwards, -gradient, gradient), None, None


class Bypass(nn.Module):
    """Combines the stream before a span with the span's upsampled result (paper, section 3.3).

    out = x + β ⊙ (y - x) with one learned β per channel, and y - x what `upsample` returns. In training β stays in
    [minimum, 1]: outside, the sign of a gradient that would push it further out is flipped.

    Args:
        hidden_size: width D of the residual stream.
    """

    INITIAL_SCALE = 0.5

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(hidden_size))
        self.minimum = 0.9  # set by the training loop, see schedule.BYPASS_MINIMUM

    def forward(self, difference: Tensor) -> Tensor:
        """Contribution to the stream.

        Args:
            difference: (B, K, D) y - x of the kept tokens.

        Returns:
            (B, K, D) β ⊙ (y - x).
        """
        scale = self.scale
        if self.training and scale.requires_grad:
            scale = _LimitParameter.apply(scale, self.minimum, 1.0)
        return difference * scale.to(difference.dtype)
