"""Selection without learning, with weight one: what learned selection is compared with."""

import torch
from torch import Tensor

from .router import Router, register
from .selection import LevelTokens, Selection

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd constants of xxHash, to scatter positions


class _Fixed(Router):
    scores_tokens = False

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Decide; see `Router.select`."""
        kept = self._kept(tokens, training).expand_as(tokens.positions)
        return Selection.of(tokens, kept, self.weigh(tokens))

    def weigh(self, tokens: LevelTokens) -> Tensor:
        """Weight 1; see `Router.weigh`."""
        return torch.ones(tokens.positions.shape, device=tokens.positions.device)

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        raise NotImplementedError


@register("even")
class EvenRouter(_Fixed):
    """Keeps tokens at even distances: of the first T tokens of its level ceil(ρT), for every T."""

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        edges = torch.stack([tokens.indices, tokens.indices + 1]).double() * self.retention_ratio
        before, after = (edges - 1e-6).ceil().clamp(min=0)
        return after > before


@register("random")
class RandomRouter(_Fixed):
    """Keeps random tokens.

    Training draws ceil(ρT) of each row anew in every pass. Inference keeps a token with probability ρ; the draw depends
    on its index and the level alone, so that a text is always read alike, at once or token by token.
    """

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        if not training:
            return _uniform(tokens.indices, self.level) < self.retention_ratio
        drawn = torch.rand(tokens.positions.shape).to(tokens.positions.device)
        if tokens.mask is not None:
            drawn = drawn.masked_fill(~tokens.mask, 2.0)
        lengths = torch.full((len(drawn), 1), drawn.shape[1]) if tokens.mask is None else tokens.mask.sum(1, True)
        count = (lengths.to(drawn.device).double() * self.retention_ratio - 1e-6).ceil()
        return drawn.argsort(1).argsort(1) < count


def _uniform(indices: Tensor, level: int) -> Tensor:
    """Numbers in [0, 1) that look random but depend on index and level only."""
    bits = (indices + 1) * _MULTIPLIERS[0] + level * _MULTIPLIERS[1]
    for shift, multiplier in zip((15, 13), _MULTIPLIERS[1:], strict=True):
        bits = bits & 0xFFFFFFFF
        bits = (bits ^ (bits >> shift)) * multiplier
    bits = bits & 0xFFFFFFFF
    return (bits ^ (bits >> 16)).double() / 2**32
