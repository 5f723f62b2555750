"""The bypass: how much of the change by a level's blocks is added to the stream."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .schedule import TrainingSchedule

if TYPE_CHECKING:
    from ..configuration import SubllmConfig


def bypass_scales(bypasses: Iterable[nn.Module | None], width: int) -> np.ndarray:
    """(S, D) float32 bypass scale β of every level; NaN where a level has no bypass."""
    nothing = torch.full((width,), torch.nan)
    rows = [each.scale.detach().float().cpu() if isinstance(each, Bypass) else nothing for each in bypasses]
    return np.stack([row.numpy() for row in rows]) if rows else np.zeros((0, width), dtype=np.float32)


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
    """Combines the stream before a level with the level's upsampled result (paper, section 3.3).

    out = x + β ⊙ (y - x) with one learned β per channel, where y - x is what the router's `leave` returns. In
    training β stays in [minimum, 1]: outside, the sign of a gradient that would push it further out is flipped. The
    minimum follows the configuration's schedule.
    """

    INITIAL_SCALE = 0.5

    def __init__(self, config: "SubllmConfig") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(config.hidden_size))
        self.minimum = TrainingSchedule(config.bypass_minimum, config.bypass_steps)

    def forward(self, difference: Tensor) -> Tensor:
        """Compute the contribution to the stream.

        Args:
            difference: (B, K, D) y - x at the kept tokens.

        Returns:
            (B, K, D) β ⊙ (y - x).
        """
        scale = self.scale
        if self.training and scale.requires_grad and torch.is_grad_enabled():
            scale = _LimitParameter.apply(scale, self.minimum(scale), 1.0)
        return difference * scale.to(difference.dtype)
