"""Subsampling: score every token, decide which ones go on, and with what weight."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .balancer import balanced_weights

Rule = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Decides in place of the inference rule. Given the number of the span, the scores (B, T) of its parent's new tokens,
their positions (B, T) in their row's prompt, and a mask (B, T) that is False at padding, or None where there is none,
it returns which tokens are kept, (B, T) bool, and their weights, (B, T)."""


@dataclass(frozen=True)
class Selection:
    """What a subsampling module decided about the tokens of its parent sequence.

    Letters: B batch, T tokens of the parent sequence, K kept tokens of the row that keeps most.

    Attributes:
        scores: (B, T) importance before clamping, float32.
        indices: (B, K) kept tokens as indices into T, ascending; rows that keep fewer are filled up at the end.
        weights: (B, K) float32 in [-1, 1]; 0 at the filling.
        mask: (B, K) False at the filling, or None where no row has any.
        counts: kept tokens per row.
    """

    scores: Tensor
    indices: Tensor
    weights: Tensor
    mask: Tensor | None
    counts: list[int]


class Subsampler(nn.Module):
    """Scores tokens linearly and selects some of them (paper, section 3.1).

    Inference keeps a token iff its score is positive, so each token decides alone and the model stays causal.
    Training keeps the ceil(ρT) highest scores of each row.

    Args:
        hidden_size: width D of the residual stream.
        retention_ratio: ρ, the share of tokens kept in training.
    """

    def __init__(self, hidden_size: int, retention_ratio: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.retention_ratio = retention_ratio
        self.balancer_probability = 1.0  # set by the training loop, see schedule.BALANCER_PROBABILITY

    def score(self, hidden_states: Tensor) -> Tensor:
        """Importance of each token before clamping, s = x·w, in float32 whatever the model's dtype.

        Args:
            hidden_states: (B, T, D).

        Returns:
            (B, T) float32.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            return hidden_states.float() @ self.weight.float()

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        rule: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Selection:
        """Select tokens.

        Args:
            hidden_states: (B, T, D), rows packed to the left.
            mask: (B, T), False at padding, or None where no row has any.
            rule: given the scores, decides which tokens are kept and with what weights, each (B, T).
        """
        scores = self.score(hidden_states)
        if rule is not None:
            return select_kept(scores, mask, *rule(scores))
        if not self.training:
            return select_positive(scores, mask)
        weights = balanced_weights(scores, mask, self.retention_ratio, self.balancer_probability)
        return select_top(scores, weights, mask, self.retention_ratio, reverse_discarded=torch.rand(()).item() < 0.5)


def select_positive(scores: Tensor, mask: Tensor | None) -> Selection:
    """Inference rule: keep the tokens with a positive score, weighted by clamp(score, 0, 1).

    Args:
        scores: (B, T) importance scores.
        mask: (B, T), False at padding, or None.
    """
    return select_kept(scores, mask, *inference_rule(scores))


def inference_rule(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens inference keeps, and with what weights: both (B, T), from their scores (B, T)."""
    return scores > 0, scores.clamp(0, 1)


def select_kept(scores: Tensor, mask: Tensor | None, kept: Tensor, weights: Tensor) -> Selection:
    """Selection of given tokens.

    Args:
        scores: (B, T) importance scores.
        mask: (B, T), False at padding, which is never kept, or None.
        kept: (B, T) bool.
        weights: (B, T) of the tokens, where they are kept.
    """
    if mask is not None:
        kept = kept & mask
    if scores.shape[0] == 1:
        indices = kept[0].nonzero().T  # (1, K)
        return Selection(scores, indices, weights.gather(1, indices), None, [indices.shape[1]])
    indices, kept_mask, counts = _pack(kept)
    chosen = weights.gather(1, indices)
    return Selection(scores, indices, chosen if kept_mask is None else chosen * kept_mask, kept_mask, counts)


def select_top(
    scores: Tensor, weights: Tensor, mask: Tensor | None, retention_ratio: float, *, reverse_discarded: bool
) -> Selection:
    """Training rule: keep the ceil(ρT) highest scores of each row, in their original order.

    The weight of the i-th highest kept token is its a = clamp(s, 0, 1) minus the a of the i-th highest discarded
    token (0 where there is none). That difference is what gives the scorer a gradient: it pushes kept scores up and
    discarded ones below zero, so that the threshold rule of inference ends up keeping the same tokens.

    Args:
        scores: (B, T) importance scores.
        weights: (B, T) their weights a.
        mask: (B, T), False at padding, or None.
        retention_ratio: ρ in (0, 1].
        reverse_discarded: pair the discarded tokens in reverse order (done half the time).

    Source: paper, section 3.1; `LearnedDownsamplingModule` of Zipformer (k2-fsa/icefall).
    """
    batch, length = scores.shape
    lengths = [length] * batch if mask is None else mask.sum(1).tolist()
    counts = [math.ceil(round(retention_ratio * n, 6)) for n in lengths]
    count = torch.tensor(counts, device=scores.device)[:, None]  # (B, 1)
    ranked = scores.detach() if mask is None else scores.detach().masked_fill(~mask, -math.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)  # (B, T) by rank
    if mask is not None:
        weights = weights * mask
    weights_by_rank = weights.gather(1, order)
    rank = torch.arange(length, device=scores.device).expand(batch, -1)
    partner = 2 * count - 1 - rank if reverse_discarded else count + rank  # rank of the discarded token paired
    discarded = weights_by_rank.gather(1, partner.clamp(0, length - 1)) * ((partner < length) & (partner >= count))
    differences = torch.empty_like(weights).scatter(1, order, weights_by_rank - discarded)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, rank < count)
    return select_kept(scores, mask, kept, differences)


def _pack(kept: Tensor) -> tuple[Tensor, Tensor | None, list[int]]:
    """Turn a (B, T) mask into (B, K) indices packed to the left, their mask (None if full), and counts per row."""
    counts = kept.sum(1).tolist()
    width = max(counts)
    indices = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    if min(counts) == width:
        return indices, None, counts
    mask = torch.arange(width, device=kept.device) < torch.tensor(counts, device=kept.device)[:, None]
    return indices, mask, counts
