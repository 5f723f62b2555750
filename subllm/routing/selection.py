"""What a router decides: which tokens of a level it keeps, and with what weight.

Letters: B batch, T tokens of the level that a router reads, K kept tokens of the row that keeps most, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
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
        texts: (B, T) number of the text that each token belongs to, where a row holds several: ascending, and larger
            than all others at padding. None where every row is one text.
        kept_past: number of tokens that the level which is entered has kept already, of each row. Overrides are told;
            None without a cache.
    """

    hidden_states: Tensor
    positions: Tensor
    mask: Tensor | None
    past: Lengths
    texts: Tensor | None = field(default=None, kw_only=True)
    kept_past: Lengths | None = field(default=None, kw_only=True)

    @property
    def indices(self) -> Tensor:
        """(B or 1, T) index of each token in its level's sequence, cached tokens included; in its text, if packed."""
        indices = torch.arange(self.positions.shape[1], device=self.positions.device)[None] + self.past.column
        return indices if self.texts is None else indices - self.spans[0]

    @property
    def spans(self) -> tuple[int | Tensor, Tensor]:
        """Where the text of each token begins and ends among the new tokens of its row.

        Beginnings are (B, T) or 0, ends (B, T) or (B, 1).
        """
        if self.texts is not None:
            texts = self.texts.contiguous()
            return torch.searchsorted(texts, texts), torch.searchsorted(texts, texts, right=True)
        if self.mask is not None:
            return 0, self.mask.sum(1, keepdim=True)
        batch, length = self.positions.shape
        return 0, torch.full((batch, 1), length, device=self.positions.device)

    def ranked(self, values: Tensor) -> Tensor:
        """(B, T) indices of the tokens from the highest of the values (B, T) on; one text after the other."""
        order = values.argsort(dim=1, descending=True, stable=True)
        if self.texts is None:
            return order
        return order.gather(1, self.texts.gather(1, order).argsort(dim=1, stable=True))

    def highest(self, values: Tensor, share: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens with the highest values of each row, or of each text of a packed row.

        Args:
            values: (B, T) values.
            share: number of tokens to take, for every number of tokens of a text.

        Returns:
            (B, T) bool; it may be anything at padding.
        """
        if self.mask is not None:
            values = values.masked_fill(~self.mask, -math.inf)
        starts, ends = self.spans
        chosen = torch.arange(values.shape[1], device=values.device) - starts < share(ends - starts)
        chosen = chosen.expand_as(values)
        return torch.zeros_like(chosen).scatter(1, self.ranked(values), chosen)


@dataclass(frozen=True)
class Selection:
    """One router's decision about the tokens of a level. Whoever decides makes it; nothing downstream derives it again.

    Attributes:
        kept: (B, T) True where the token enters the level; False at padding.
        weights: (B, T) float32 factor of the change that the level's blocks make to the token; 0 where it is not kept,
            except where a router merges tokens, and 0 at padding.
        scores: (B, T) float32 importance before the threshold, or None for routers that do not score.
        threshold: threshold of the scores, one number or (B, 1); None without scores, or where a share of the highest
            scores is kept, whatever they are.
        edited: (B, T) True where an edit named the token, or None where there are no edits.
        loss: what the router adds to the loss in training, one number; None where it adds nothing.
        of_pass: (2,) threshold and water level of a training pass, which the running means of a light/heavy block's
            router follow; None elsewhere.
        packing: where the kept tokens are, if the router knows it without asking the device, for which the host would
            wait; else None. Whoever changes `kept` leaves it out, as `of` does.
    """

    kept: Tensor
    weights: Tensor
    scores: Tensor | None = None
    threshold: float | Tensor | None = None
    edited: Tensor | None = None
    loss: Tensor | None = field(default=None, kw_only=True)
    of_pass: Tensor | None = field(default=None, kw_only=True)
    packing: "Packing | None" = field(default=None, kw_only=True)

    @property
    def packed(self) -> "Packing":
        """Where the kept tokens are."""
        return Packing.of(self.kept) if self.packing is None else self.packing

    @classmethod
    def of(
        cls,
        tokens: LevelTokens,
        kept: Tensor,
        weights: Tensor,
        scores: Tensor | None = None,
        threshold: float | Tensor | None = None,
        edited: Tensor | None = None,
        *,
        everywhere: bool = False,
    ) -> Self:
        """A selection that never keeps padding, with weight 0 at all tokens to which nothing is added.

        Args:
            tokens: tokens of the level outside.
            kept: (B, T) bool; may be True at padding.
            weights: (B, T), read at kept tokens only, or at all real ones.
            scores: see `Selection`.
            threshold: see `Selection`.
            edited: see `Selection`.
            everywhere: the router merges tokens (`Router.merges_tokens`), and something is added to each of them.
        """
        kept = kept if tokens.mask is None else kept & tokens.mask
        added = tokens.mask if everywhere else kept
        return cls(kept, weights if added is None else weights * added, scores, threshold, edited)


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
        """Add `values` (B, K, D), which are 0 at padding, to `stream` (B, T, D); returns a new stream."""
        if stream.shape[0] == 1:
            return stream.index_add(1, self.indices[0], values)
        return stream.scatter_add(1, self.indices[..., None].expand_as(values), values)


@dataclass(frozen=True)
class Carried:
    """What a level that merges tokens hands from one forward pass to the next, because a group may span several.

    Attributes:
        recent: (B, s - 1, D) stream of the last tokens of the level outside, the latest last; 0 before the first.
        since: number of tokens of the level outside after the last carrier: (B, 1), or one number if all rows agree.
        result: (B, D) what the last group became; 0 before the first.
    """

    recent: Tensor
    since: int | Tensor
    result: Tensor

    @property
    def used_bytes(self) -> int:
        """Bytes of the streams and of the results, all rows together."""
        return sum(each.numel() * each.element_size() for each in (self.recent, self.result))

    def to(self, device: torch.device) -> Self:
        """The same on another device: where a level's blocks lie on several, tokens may stop at the first of them."""
        since = self.since if isinstance(self.since, int) else self.since.to(device)
        return type(self)(self.recent.to(device), since, self.result.to(device))

    def select_rows(self, rows: Tensor) -> Self:
        """Those of the given rows, in that order; rows may repeat."""
        recent, result = (each.index_select(0, rows.to(each.device)) for each in (self.recent, self.result))
        since = self.since if isinstance(self.since, int) else self.since.index_select(0, rows.to(self.since.device))
        return type(self)(recent, since, result)


@dataclass(frozen=True)
class Entry:
    """How a level was entered.

    Attributes:
        selection: what the router decided about the tokens of the level outside.
        packing: where the kept tokens are.
        carried: what earlier passes left, where the router merges tokens and a cache continues.
    """

    selection: Selection
    packing: Packing
    carried: Carried | None = None


def gather(values: Tensor, indices: Tensor) -> Tensor:
    """Values (B, K) or (B, K, D) at `indices` (B, K), out of `values` (B, T) or (B, T, D)."""
    if values.shape[0] == 1:
        return values.index_select(1, indices[0])
    if values.ndim == 2:
        return values.gather(1, indices)
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
