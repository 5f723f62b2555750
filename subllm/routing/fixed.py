"""Routers that do not learn and give every token a weight of 1: baselines for learned selection."""

from functools import partial

import torch
from torch import Tensor

from .lengths import kept_count
from .router import Router, register
from .selection import LevelTokens, Selection

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd constants of xxHash, to scatter positions


class _Fixed(Router):
    scores_tokens = False

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Keep tokens by a fixed rule; see `Router.select`."""
        kept = self._kept(tokens, training).expand_as(tokens.positions)
        return Selection.of(tokens, kept, self.weigh(tokens))

    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """Give every token a weight of 1; see `Router.weigh`."""
        return torch.ones(tokens.positions.shape, device=tokens.positions.device)

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        raise NotImplementedError


@register("even")
class EvenRouter(_Fixed):
    """Keeps tokens at even distances: ceil(ρT) of the first T tokens of its level, for every T."""

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        before, after = (kept_count(self.retention_ratio, tokens.indices + further) for further in (0, 1))
        return after > before


@register("random")
class RandomRouter(_Fixed):
    """Keeps random tokens.

    Training draws ceil(ρT) tokens of each text in every pass. Inference keeps a token with probability ρ; the draw
    depends only on the token's index and the level, so a text is routed alike in one pass and token by token.
    """

    def _kept(self, tokens: LevelTokens, training: bool) -> Tensor:
        if not training:
            return _uniform(tokens.indices, self.level) < self.retention_ratio
        drawn = torch.rand(tokens.positions.shape).to(tokens.positions.device)
        return tokens.highest(-drawn, partial(self.quota, self.retention_ratio))


def _uniform(indices: Tensor, level: int) -> Tensor:
    """Pseudo-random numbers in [0, 1) that depend on index and level only."""
    bits = (indices + 1) * _MULTIPLIERS[0] + level * _MULTIPLIERS[1]
    for shift, multiplier in zip((15, 13), _MULTIPLIERS[1:], strict=True):
        bits = bits & 0xFFFFFFFF
        bits = (bits ^ (bits >> shift)) * multiplier
    bits = bits & 0xFFFFFFFF
    return (bits ^ (bits >> 16)).double() / 2**32
