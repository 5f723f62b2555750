"""The tokens of each level on their way through the model, and states from which a forward pass can resume."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..routing import Entry, Lengths, LevelTokens, Packing, RoutingRecord
from ..routing.selection import gather


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

    def together(self) -> "Tokens":
        """The same tokens with everything on the stream's device; blocks may lie on several."""
        return self.at(self.hidden_states.device)

    def at(self, device: torch.device) -> "Tokens":
        """The same tokens with everything but the stream on this device."""
        if self.positions.device == device:
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        cos, sin = self.rotary
        return replace(
            self,
            positions=self.positions.to(device),
            mask=moved(self.mask),
            past=self.past.to(device),
            texts=moved(self.texts),
            rotary=(cos.to(device), sin.to(device)),
            attention_mask=moved(self.attention_mask),
            columns=moved(self.columns),
        )


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

    def repeated(self, batch: int) -> "Snapshot":
        """The state with its one row repeated `batch` times, without a copy."""
        levels = tuple(
            replace(
                tokens,
                hidden_states=tokens.hidden_states.expand(batch, -1, -1),
                positions=tokens.positions.expand(batch, -1),
                past=Lengths.even(tokens.past.longest, batch),
                texts=_expanded(tokens.texts, batch),
                columns=_expanded(tokens.columns, batch),
                entry=None if tokens.entry is None else _repeated(tokens.entry, batch),
            )
            for tokens in self.levels
        )
        return Snapshot(self.step, levels, {level: record.repeated(batch) for level, record in self.records.items()})


def _expanded(values: Tensor | None, batch: int) -> Tensor | None:
    """Values (1, …) as (batch, …)."""
    return None if values is None else values.expand(batch, *values.shape[1:])


def _repeated(entry: Entry, batch: int) -> Entry:
    selection, packing = entry.selection, entry.packing
    packing = Packing(packing.indices.expand(batch, -1), None, Lengths.even(packing.counts.longest, batch))
    return Entry(
        replace(
            selection,
            kept=selection.kept.expand(batch, -1),
            weights=selection.weights.expand(batch, -1),
            scores=_expanded(selection.scores, batch),
            threshold=(
                _expanded(selection.threshold.reshape(1, -1), batch)
                if isinstance(selection.threshold, Tensor)
                else selection.threshold
            ),
            edited=_expanded(selection.edited, batch),
            packing=None if selection.packing is None else packing,
        ),
        packing,
    )


def pack(tensor: Tensor, real: Tensor, width: int) -> Tensor:
    """Move the real tokens of each row to the left: (B, T, …) to (B, width, …); `real` is (B, T), False at padding."""
    return gather(tensor, real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width])


def unpack(hidden_states: Tensor, real: Tensor) -> Tensor:
    """Undo `pack`: (B, L, D) to the (B, T, D) columns of the input, zero at padding."""
    real = real.to(hidden_states.device)
    slots = (real.cumsum(1) - 1).clamp(min=0)
    if hidden_states.shape[1] == 0:
        return hidden_states.new_zeros(*real.shape, hidden_states.shape[2])
    return gather(hidden_states, slots).masked_fill(~real[..., None], 0)


def texts_of(position_ids: Tensor, present: Tensor | None, *, jumps: bool) -> Tensor | None:
    """Find the texts of packed rows by their positions; the host waits once.

    Args:
        position_ids: (B, T) positions of the tokens, packed.
        present: (B, T) False at padding, which is at the end, or None where there is none.
        jumps: whether a new text begins wherever positions do not count on, as in a LLaMA without a mask; else only
            where they do not grow.

    Returns:
        (B, T) texts as in `LevelTokens.texts`; None if every row is one text.
    """
    steps = position_ids.diff(dim=1)
    begins = steps != 1 if jumps else steps < 1
    if present is not None:
        begins = begins & present[:, 1:]
    if not begins.any():
        return None
    return without_padding(F.pad(begins.cumsum(1), (1, 0)), present)


def without_padding(texts: Tensor, present: Tensor | None) -> Tensor:
    """Texts (B, T) with the number of padding where `present` (B, T) is False."""
    return texts if present is None else texts.masked_fill(~present, torch.iinfo(texts.dtype).max)
