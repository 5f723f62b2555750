"""The tokens of each level on their way through the model, and states from which a forward pass can resume."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..routing import Lengths, LevelTokens, Packing, RoutingRecord, Selection
from ..routing.selection import gather


@dataclass(frozen=True)
class Entry:
    """How a level was entered.

    Attributes:
        selection: what the router decided about the tokens of the level outside.
        packing: where the kept tokens are.
    """

    selection: Selection
    packing: Packing


@dataclass(frozen=True)
class Tokens(LevelTokens):
    """The tokens of one level, with what its blocks need to run on them.

    Attributes:
        rotary: cos and sin, (B or 1, T, head_dim).
        attention_mask: mask for the attention kernel, or None where plain causal attention is right.
        columns: (B, T) column of each token among the new tokens of the pass; None on the whole sequence.
        entry: how the level was entered; None on the whole sequence.
    """

    rotary: tuple[Tensor, Tensor]
    attention_mask: Tensor | None
    columns: Tensor | None = None
    entry: Entry | None = None

    def with_stream(self, hidden_states: Tensor) -> "Tokens":
        """The same tokens with another stream (B, T, D)."""
        return replace(self, hidden_states=hidden_states)


@dataclass(frozen=True)
class Snapshot:
    """State of a forward pass just before a router decides, from which `Probe.resume` continues.

    The pass reads prompts without padding or cache.

    Attributes:
        step: number of characters of the structure that have been processed.
        levels: tokens of the whole sequence, and of every level that is open.
        records: records of the levels that are closed, if routing was recorded.
    """

    step: int
    levels: tuple[Tokens, ...]
    records: dict[int, RoutingRecord]

    def rows(self, batch: int) -> list[Tokens]:
        """The levels with their one row repeated `batch` times, without a copy."""
        return [
            replace(
                tokens,
                hidden_states=tokens.hidden_states.expand(batch, -1, -1),
                positions=tokens.positions.expand(batch, -1),
                past=Lengths.even(tokens.past.longest, batch),
                columns=None if tokens.columns is None else tokens.columns.expand(batch, -1),
                entry=None if tokens.entry is None else _repeat(tokens.entry, batch),
            )
            for tokens in self.levels
        ]


def _repeat(entry: Entry, batch: int) -> Entry:
    selection, packing = entry.selection, entry.packing
    return Entry(
        replace(
            selection,
            kept=selection.kept.expand(batch, -1),
            weights=selection.weights.expand(batch, -1),
            scores=None if selection.scores is None else selection.scores.expand(batch, -1),
        ),
        Packing(packing.indices.expand(batch, -1), None, Lengths.even(packing.counts.longest, batch)),
    )


def pack(tensor: Tensor, real: Tensor, width: int) -> Tensor:
    """Move the real tokens of each row to the left: (B, T, …) to (B, width, …); `real` is (B, T), False at padding."""
    return gather(tensor, real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width])


def unpack(hidden_states: Tensor, real: Tensor) -> Tensor:
    """Undo `pack`: (B, L, D) to the (B, T, D) columns of the input, zero at padding."""
    slots = (real.cumsum(1) - 1).clamp(min=0)
    if hidden_states.shape[1] == 0:
        return hidden_states.new_zeros(*real.shape, hidden_states.shape[2])
    return gather(hidden_states, slots).masked_fill(~real[..., None], 0)
