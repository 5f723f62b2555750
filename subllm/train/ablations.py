"""Selection without learning, to compare learned selection with."""

import math

import torch
from torch import Tensor

from ..subsampling import Rule


def fixed_rule(kind: str, retention_ratios: list[float]) -> Rule:
    """A rule that keeps the nominal share of tokens whatever they are, with weight one.

    Args:
        kind: "stride" keeps tokens at even distances, "random" keeps random ones.
        retention_ratios: ρ of each span.

    Returns:
        For whole sequences without padding: both rules keep ceil(ρT) of T tokens in every row.
    """

    def rule(span: int, scores: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        length = scores.shape[1]
        count = math.ceil(round(retention_ratios[span] * length, 6))
        if kind == "stride":
            before = torch.arange(length + 1, device=scores.device) * count // length
            kept = (before[1:] > before[:-1]).expand_as(scores)
        else:
            order = torch.rand(scores.shape).argsort(1).to(scores.device)
            kept = order.argsort(1) < count
        return kept, torch.ones_like(scores)

    return rule
