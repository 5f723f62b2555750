"""Mixture-of-Depths (arXiv 2404.02258): the highest router weights pass through the blocks, which they multiply.

The highest weights of a text depend on its later tokens. What stands for them at inference is learned beside: either
the weight itself, which an auxiliary loss drives above 0 for the tokens among the highest and below 0 for the others,
or a small predictor of that membership.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lengths import capacity
from .router import RoutingWork, register
from .scorer import LinearRouter
from .selection import LevelTokens, Selection

if TYPE_CHECKING:
    from ..configuration import SubllmConfig

ROUTER_WEIGHTS = ("score", "unit")


class _Linear(nn.Linear):
    """A linear layer that computes in float32 whatever the dtype of its weights."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project (B, T, D)."""
        assert self.bias is not None
        return F.linear(hidden_states.float(), self.weight.float(), self.bias.float())


@register("mod")
class DepthRouter(LinearRouter):
    """Multiplies the change by the level's blocks with the router weight r = x·w, of any size and sign.

    Training keeps the int(ρT) highest weights of each row, at least one. Inference keeps a token iff its score is above
    the threshold, 0; the score is r, or the predictor's logit. There is no bypass.

    With `router_weight` "unit" of the configuration the weight is 1 and its gradient that of r: a conversion starts so,
    because a LLaMA's blocks expect to be added whole.
    """

    has_bypass = False
    quota = staticmethod(capacity)

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__(config, level)
        width = config.hidden_size
        self.unit_weight = config.router_weight == "unit"
        self.predictor: nn.Sequential | None = None
        if config.predictor:
            self.predictor = nn.Sequential(_Linear(width, width // 2), nn.SiLU(), _Linear(width // 2, 1))

    def score(self, hidden_states: Tensor) -> Tensor:
        """What decides at inference, for tokens (B, T, D): r or the predictor's logit; (B, T) float32."""
        return super().score(hidden_states) if self.predictor is None else self._predict(hidden_states)

    def decide(self, tokens: LevelTokens, scores: Tensor, threshold: float | Tensor = 0.0) -> Selection:
        """Keep the scores above the threshold, with the same weight wherever the threshold is."""
        return Selection.of(tokens, scores > threshold, self._weights(self._r(tokens, scores)), scores, threshold)

    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """Give every token its router weight; see `Router.weigh`."""
        return self._weights(super().score(tokens.hidden_states))

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Select by the threshold, or in training by rank; see `Router.select`."""
        if not training:
            return self.decide(tokens, self.score(tokens.hidden_states))
        r = super().score(tokens.hidden_states)
        kept = tokens.highest(r.detach(), partial(self.quota, self.retention_ratio))
        logits = r if self.predictor is None else self._predict(tokens.hidden_states.detach())
        loss = F.binary_cross_entropy_with_logits(logits, kept.float(), tokens.mask, reduction="sum")
        real = max(kept.numel(), 1) if tokens.mask is None else tokens.mask.sum().clamp(min=1)
        return replace(Selection.of(tokens, kept, self._weights(r), r), loss=loss / real)

    def _r(self, tokens: LevelTokens, scores: Tensor) -> Tensor:
        """The router weights of tokens whose scores are known."""
        return scores if self.predictor is None else super().score(tokens.hidden_states)

    def _weights(self, r: Tensor) -> Tensor:
        return 1 + (r - r.detach()) if self.unit_weight else r

    def _predict(self, hidden_states: Tensor) -> Tensor:
        """(B, T) logits of being among the highest, in float32 whatever the model's dtype."""
        assert self.predictor is not None
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.predictor(hidden_states)[..., 0].to(hidden_states.device)

    @classmethod
    def work(cls, config: "SubllmConfig", tokens: float, kept: float) -> RoutingWork:
        """Operations and memory traffic; see `Router.work`."""
        linear = super().work(config, tokens, kept)
        if not config.predictor:
            return linear
        width, half = config.hidden_size, config.hidden_size // 2
        product = width * half + half  # as many multiplications for a token as there are weights to read
        moved = tokens * (width + 2 * half) + product
        return RoutingWork(linear.operations + 2 * tokens * product, linear.moved + moved)
