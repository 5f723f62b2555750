"""SUBLLM's router: a linear score per token, kept where it is positive."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .balancer import balanced_weights
from .lengths import kept_count
from .router import Router, register
from .schedule import TrainingSchedule
from .selection import LevelTokens, Selection

if TYPE_CHECKING:
    from ..configuration import SubllmConfig


class LinearRouter(Router):
    """Base of the routers that learn a weight per channel: its dot product with a token says how important it is."""

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__(config, level)
        self.weight = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """S = x·w for tokens (B, T, D); (B, T), in float32 whatever the model's dtype."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return hidden_states.float() @ self.weight.float()

    def score(self, hidden_states: Tensor) -> Tensor:
        """The same on the device of the tokens, wherever the weight lies."""
        return self(hidden_states).to(hidden_states.device)  # a call, in which hooks fetch weights that lie elsewhere


@register("subllm")
class Subsampler(LinearRouter):
    """Scores tokens linearly and selects some of them (paper, section 3.1).

    Inference keeps a token iff its score is above the threshold, 0, so each token decides alone and the model stays
    causal. Training keeps the ceil(ρT) highest scores of each row.
    """

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__(config, level)
        self.balancing = TrainingSchedule(config.balancer_probability, config.balancer_steps)

    def decide(self, tokens: LevelTokens, scores: Tensor, threshold: float | Tensor = 0.0) -> Selection:
        """Keep the scores above the threshold, with weight clamp(s - threshold, 0, 1)."""
        above = _above(scores, threshold)
        return Selection.of(tokens, above > 0, above.clamp(0, 1), scores, threshold)

    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """Give every token the weight clamp(s - threshold, 0, 1); see `Router.weigh`."""
        return _above(self.score(tokens.hidden_states), 0.0 if threshold is None else threshold).clamp(0, 1)

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Select by the threshold, or in training by rank; see `Router.select`."""
        scores = self.score(tokens.hidden_states)
        if not training:
            return self.decide(tokens, scores)
        probability = self.balancing(self.weight)
        weights = balanced_weights(scores, tokens.mask, self.retention_ratio, probability)
        kept, weights = select_top(
            tokens, scores, weights, self.retention_ratio, reverse_discarded=torch.rand(()).item() < 0.5
        )
        return Selection.of(tokens, kept, weights, scores)


def _above(scores: Tensor, threshold: float | Tensor) -> Tensor:
    return scores if isinstance(threshold, float) and threshold == 0 else scores - threshold


def select_top(
    tokens: LevelTokens, scores: Tensor, weights: Tensor, retention_ratio: float, *, reverse_discarded: bool
) -> tuple[Tensor, Tensor]:
    """Apply the training rule: keep the ceil(ρT) highest scores of each row, or of each text of a packed row.

    The weight of the i-th highest kept token is its a = clamp(s, 0, 1) minus the a of the i-th highest discarded
    token (0 where there is none). That difference is what gives the scorer a gradient: it pushes kept scores up and
    discarded ones below zero, so that the threshold rule used in inference ends up keeping the same tokens.

    Args:
        tokens: tokens of the level outside.
        scores: (B, T) importance scores.
        weights: (B, T) their weights a.
        retention_ratio: ρ in (0, 1].
        reverse_discarded: pair the discarded tokens in reverse order (done half the time).

    Returns:
        Which tokens are kept, and their weights: both (B, T). Either may be anything at padding.

    Source: paper, section 3.1; `LearnedDownsamplingModule` of Zipformer (k2-fsa/icefall).
    """
    length, mask = scores.shape[1], tokens.mask
    starts, ends = tokens.spans
    count = kept_count(retention_ratio, ends - starts)  # (B, T or 1)
    order = tokens.ranked(scores.detach() if mask is None else scores.detach().masked_fill(~mask, -math.inf))
    if mask is not None:
        weights = weights * mask
    weights_by_rank = weights.gather(1, order)
    rank = torch.arange(length, device=scores.device) - starts  # (B or 1, T) in the token's text
    partner = 2 * count - 1 - rank if reverse_discarded else count + rank  # rank of the discarded token paired
    paired = (partner >= count) & (starts + partner < ends)
    discarded = weights_by_rank.gather(1, (starts + partner).clamp(0, length - 1)) * paired
    differences = torch.empty_like(weights).scatter(1, order, weights_by_rank - discarded)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, rank < count)
    return kept, differences
