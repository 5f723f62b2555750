"""What a router decides: which tokens of a level it keeps, and with what weight.

Letters: B batch, T tokens of the level that a router reads, K kept tokens of the row that keeps most, D width.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .lengths import Lengths


@dataclass(frozen=True)
class LevelTokens:
    """The new tokens of one level, each row packed to the left.

    Attributes:
        hidden_states: (B, T, D) residual stream.
        positions: (B, T) position of each token in its row's prompt.
        mask: (B, T) False at padding, or None where there is none.
        past: number of tokens of the level that each row has in the cache.
    """

    hidden_states: Tensor
    positions: Tensor
    mask: Tensor | None
    past: Lengths

    @property
    def indices(self) -> Tensor:
        """(B or 1, T) index of each token in its level's sequence, cached tokens included."""
        return torch.arange(self.positions.shape[1], device=self.positions.device)[None] + self.past.column

    @property
    def new(self) -> Tensor:
        """(B, 1) new tokens per row."""
        if self.mask is not None:
            return self.mask.sum(1, keepdim=True)
        batch, length = self.positions.shape
        return torch.full((batch, 1), length, device=self.positions.device)


@dataclass(frozen=True)
class Selection:
    """One router's decision about the tokens of a level. Whoever decides makes it; nothing downstream derives it again.

    Attributes:
        kept: (B, T) True where the token enters the level; False at padding.
        weights: (B, T) float32 factor of the change that the level's blocks make to the token; 0 where it is not kept.
        scores: (B, T) float32 importance before the threshold, or None for routers that do not score.
        threshold: threshold of the scores, one number or (B, 1); None without scores, or where a share of the highest
            scores is kept, whatever they are.
        edited: (B, T) True where an edit named the token, or None where there are no edits.
    """

    kept: Tensor
    weights: Tensor
    scores: Tensor | None = None
    threshold: float | Tensor | None = None
    edited: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: LevelTokens,
        kept: Tensor,
        weights: Tensor,
        scores: Tensor | None = None,
        threshold: float | Tensor | None = None,
        edited: Tensor | None = None,
    ) -> Self:
        """A selection that never keeps padding, with weight 0 at all tokens that are not kept.

        Args:
            tokens: tokens of the level outside.
            kept: (B, T) bool; may be True at padding.
            weights: (B, T), read at kept tokens only.
            scores: see `Selection`.
            threshold: see `Selection`.
            edited: see `Selection`.
        """
        kept = kept if tokens.mask is None else kept & tokens.mask
        return cls(kept, weights * kept, scores, threshold, edited)


@dataclass(frozen=True)
class Packing:
    """Where the kept tokens of each row are, packed to the left; used while a level is open.

    Attributes:
        indices: (B, K) kept tokens as indices into T, ascending; rows that keep fewer are padded with other tokens.
        mask: (B, K) False at this padding, or None where no row has any.
        counts: number of kept tokens in each row.
    """

    indices: Tensor
    mask: Tensor | None
    counts: Lengths

    @classmethod
    def of(cls, kept: Tensor) -> Self:
        """Pack the tokens that are kept, (B, T) bool."""
        if kept.shape[0] == 1:
            indices = kept[0].nonzero().T
            return cls(indices, None, Lengths.even(indices.shape[1], 1))
        counts = Lengths.count(kept)
        indices = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : counts.longest]
        return cls(indices, counts.mask(counts.longest, kept.device), counts)

    def gather(self, values: Tensor) -> Tensor:
        """Values (B, K, …) of the kept tokens, out of `values` (B, T, …)."""
        return gather(values, self.indices)

    def scatter_add(self, stream: Tensor, values: Tensor) -> Tensor:
        """Add `values` (B, K, D) to `stream` (B, T, D) at the kept tokens; returns a new stream."""
        if stream.shape[0] == 1:
            return stream.index_add(1, self.indices[0], values)
        if self.mask is not None:
            values = values.masked_fill(~self.mask[..., None], 0)
        return stream.scatter_add(1, self.indices[..., None].expand_as(values), values)


def gather(values: Tensor, indices: Tensor) -> Tensor:
    """Values (B, K) or (B, K, D) at `indices` (B, K), out of `values` (B, T) or (B, T, D)."""
    if values.shape[0] == 1:
        return values.index_select(1, indices[0])
    if values.ndim == 2:
        return values.gather(1, indices)
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
