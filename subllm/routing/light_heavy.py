"""The routers of a light/heavy block (CoLT5, arXiv 2303.09752): which tokens its heavy branches process.

A block has three: of queries, of keys and values, and of the tokens of its MLP. Training routes the highest scores of
each text, whose weights are those of a soft top-k (`subllm.routing.soft_topk`). Both depend on the whole text, through
two numbers only: the threshold that the routed scores exceed, and the water level of the weights. Their running means
in training stand for them at inference, where each token then decides alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .lengths import capacity
from .router import ROUTERS, Router, RoutingWork
from .scorer import LinearRouter
from .selection import LevelTokens, Selection
from .soft_topk import soft_weights, water_level

if TYPE_CHECKING:
    from ..configuration import SubllmConfig

LIGHT_HEAVY_ROUTER = "colt5"  # name of these routers, which no configuration asks for: they come with the block
WEIGHTED = 9 / 8  # sum of the weights in training, for each token that is routed
_RATE = 0.05  # of the running means, once they have seen 20 passes: scores move quickly early in a training


class LightHeavyRouter(LinearRouter):
    """Routes tokens to one heavy branch of a light/heavy block.

    Training routes the int(ρT) highest scores of each text, at least one. Inference routes a token iff its score is
    above the threshold. The weight of a routed token is exp(min((s + a) / ε, 0)) with the water level a. The first
    token of a text is always a routed key, so that every query sees one.

    Args:
        config: configuration of the model.
        level: number of the level, from 1.

    Attributes:
        kind: "query", "key_value" or "mlp".
        threshold: running mean of the number halfway between the lowest routed score and the next.
        water_level: running mean of a.
        passes: number of training passes in these means.
    """

    has_bypass = False
    quota = staticmethod(capacity)
    threshold: Tensor
    water_level: Tensor
    passes: Tensor

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__(config, level)
        self.kind = config.parsed_structure.sites[level - 1].kind
        self.epsilon = float(config.epsilon)
        for name, dtype in (("threshold", torch.float32), ("water_level", torch.float32), ("passes", torch.long)):
            self.register_buffer(name, torch.zeros((), dtype=dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LightHeavyRouter":
        means = self.threshold, self.water_level
        super()._apply(fn, recurse)
        self.threshold, self.water_level = map(_in_float32, means, (self.threshold, self.water_level))
        return self

    @property
    def usual_threshold(self) -> Tensor:
        """(1, 1) the learned threshold; see `Router.usual_threshold`."""
        return self.threshold.float().view(1, 1)

    def decide(self, tokens: LevelTokens, scores: Tensor, threshold: float | Tensor | None = None) -> Selection:
        """Route the scores above the threshold, with the same weights wherever it is; by default the learned one."""
        if threshold is None:
            threshold = self.usual_threshold.to(scores.device)
        return Selection.of(
            tokens, self._with_first(tokens, scores > threshold), self._weights(scores), scores, threshold
        )

    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """Give every token its weight at the learned level; see `Router.weigh`."""
        return self._weights(self.score(tokens.hidden_states))

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Select by the threshold, or in training by rank; see `Router.select`."""
        scores = self.score(tokens.hidden_states)
        if not training or not scores.numel():
            return self.decide(tokens, scores)
        kept = tokens.highest(scores.detach(), partial(self.quota, self.retention_ratio))
        texts = _Texts.of(tokens, scores)
        routed = self.quota(self.retention_ratio, texts.counts).to(scores.dtype)
        levels = water_level(texts.scores, WEIGHTED * routed, self.epsilon, texts.mask)
        weights = soft_weights(scores, texts.spread(levels), self.epsilon)
        selection = Selection.of(tokens, self._with_first(tokens, kept), weights, scores)
        return replace(selection, of_pass=self._of_pass(texts, routed, levels))

    @staticmethod
    @torch.no_grad()
    def _of_pass(texts: "_Texts", routed: Tensor, levels: Tensor) -> Tensor:
        """(2,) threshold and water level of a pass, to which each text adds as much as it has tokens."""
        ranked = texts.scores if texts.mask is None else texts.scores.masked_fill(~texts.mask, -torch.inf)
        ranked = ranked.sort(dim=1, descending=True).values
        last = ranked.gather(1, (routed - 1).long()[:, None])[:, 0]
        following = ranked.gather(1, routed.long().clamp(max=ranked.shape[1] - 1)[:, None])[:, 0]
        following = torch.where(routed < texts.counts, following, last - 1)
        shares, present = texts.counts / texts.counts.sum(), texts.counts > 0
        found = torch.stack([(last + following) / 2, levels]).where(present, 0.0)  # a row of padding alone has neither
        return (found * shares).sum(1)

    @torch.no_grad()
    def follow(self, selection: Selection) -> None:
        """Let the running means follow a training pass.

        A pass whose scores are not all finite changes nothing: the means would never be finite again. Nor does a pass
        in which the router is frozen, as for adapters that are trained beside it.

        Args:
            selection: what the router selected in it.
        """
        if selection.of_pass is None or not self.weight.requires_grad:
            return
        found = selection.of_pass.to(self.threshold.device)
        sound = found.isfinite().all()  # asking the host would stop it
        rate = (1 / (self.passes + 1)).clamp(min=_RATE)
        for mean, now in zip((self.threshold, self.water_level), found, strict=True):
            mean += torch.where(sound, rate * (now - mean), 0.0)
        self.passes += sound

    @classmethod
    def work(cls, config: "SubllmConfig", tokens: float, kept: float, kind: str = "query") -> RoutingWork:
        """Operations and memory traffic of a router of this kind; see `Router.work`. There is no bypass."""
        width = config.hidden_size
        moved = tokens + 2 * kept  # the scorer reads all; the gather reads and writes the routed ones
        if kind != "key_value":  # weighting reads and writes the results, adding reads both and writes
            moved += 5 * kept
        return RoutingWork(2 * tokens * width, width * moved)

    def _weights(self, scores: Tensor) -> Tensor:
        return soft_weights(scores, self.water_level.float().to(scores.device), self.epsilon)

    def _with_first(self, tokens: LevelTokens, kept: Tensor) -> Tensor:
        return kept | (tokens.indices == 0) if self.kind == "key_value" else kept


def _in_float32(before: Tensor, moved: Tensor) -> Tensor:
    """A running mean where it was moved to, not rounded: it moves in small steps."""
    return moved.float() if before.is_meta or moved.is_meta else before.to(moved.device, torch.float32)


def router_class(name: str) -> type[Router]:
    """The class of the routers of a name; `Router` for the name of somebody's own, as a trace may hold it."""
    return LightHeavyRouter if name == LIGHT_HEAVY_ROUTER else ROUTERS.get(name, Router)  # type: ignore[type-abstract] # asked, not made


class _Texts:
    """The scores of a level, one row for each text.

    Attributes:
        scores: (N, L) scores of each text, packed to the left.
        mask: (N, L) False at padding, or None.
        counts: (N,) number of tokens of each text.
    """

    def __init__(self, scores: Tensor, mask: Tensor | None, counts: Tensor, places: tuple[Tensor, Tensor] | None):
        self.scores, self.mask, self.counts, self._places = scores, mask, counts, places

    @classmethod
    def of(cls, tokens: LevelTokens, scores: Tensor) -> "_Texts":
        """Split rows that hold several texts; the host waits for their number."""
        batch, length = scores.shape
        if tokens.texts is None:
            counts = torch.full((batch,), length, device=scores.device)
            return cls(scores, tokens.mask, counts if tokens.mask is None else tokens.mask.sum(1), None)
        real = torch.ones_like(tokens.texts, dtype=torch.bool) if tokens.mask is None else tokens.mask
        rows = torch.arange(batch, device=scores.device)[:, None].expand(batch, length)
        names = torch.stack([rows, tokens.texts], -1)[real]
        _, numbers, counts = torch.unique_consecutive(names, dim=0, return_inverse=True, return_counts=True)
        indices = tokens.indices[real]
        table = scores.new_zeros(len(counts), int(counts.max())).index_put((numbers, indices), scores[real])
        mask = torch.arange(table.shape[1], device=scores.device) < counts[:, None]
        return cls(table, mask, counts, (real, numbers))

    def spread(self, values: Tensor) -> Tensor:
        """(B, T or 1) the value of each token's text, out of (N,); anything at padding."""
        if self._places is None:
            return values[:, None]
        real, numbers = self._places
        return values.new_zeros(real.shape).masked_scatter(real, values[numbers])
