"""The tokens on their way through the model, level by level, and states from which a forward pass can go on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .routing import RoutingRecord
from .subsampling import Selection
from .upsampling import gather_tokens


@dataclass
class Tokens:
    """The tokens present at one level, packed to the left, and what its blocks need to run on them.

    B batch, L tokens of the longest row.
    """

    hidden_states: Tensor  # (B, L, D)
    positions: Tensor  # (B, L) position in the row's prompt
    mask: Tensor | None  # (B, L) False at padding
    rotary: tuple[Tensor, Tensor]  # cos and sin, (B or 1, L, head_dim)
    past: list[int]  # cached tokens per row of this level
    attention_mask: Tensor | None
    selection: Selection | None = None  # how these tokens were chosen from the level above


@dataclass(frozen=True)
class Snapshot:
    """A forward pass just before a span, of prompts without padding or cache: what `resume` goes on from.

    Attributes:
        step: characters of the structure that are done.
        levels: tokens of the full sequence, and of every span that is open.
        records: routing of the spans that are closed, if it was wanted.
    """

    step: int
    levels: tuple[Tokens, ...]
    records: dict[int, RoutingRecord]

    @classmethod
    def take(cls, step: int, levels: list[Tokens], records: dict[int, RoutingRecord]) -> "Snapshot":
        """A snapshot of a pass that goes on; it shares the tensors, which no step changes in place.

        Args:
            step: characters of the structure that are done.
            levels: all that are open.
            records: so far.
        """
        return cls(step, tuple(replace(tokens) for tokens in levels), dict(records))

    def rows(self, batch: int) -> list[Tokens]:
        """Levels to go on with, the one row repeated without a copy.

        Args:
            batch: rows wanted.
        """
        return [
            replace(
                tokens,
                hidden_states=tokens.hidden_states.expand(batch, -1, -1),
                positions=tokens.positions.expand(batch, -1),
                past=tokens.past[:1] * batch,
                selection=None if tokens.selection is None else _repeat(tokens.selection, batch),
            )
            for tokens in self.levels
        ]


def _repeat(selection: Selection, batch: int) -> Selection:
    scores, indices, weights = (
        tensor.expand(batch, -1) for tensor in (selection.scores, selection.indices, selection.weights)
    )
    return Selection(scores, indices, weights, None, selection.counts[:1] * batch)


def uneven(numbers: list[int]) -> bool:
    """Whether rows differ."""
    return min(numbers) != max(numbers)


def absolute(indices: Tensor, past: list[int]) -> Tensor:
    """Indices (B, K) among the new tokens of a level, counted from the first token ever."""
    return indices + torch.tensor(past, device=indices.device)[:, None] if any(past) else indices


def unpack(hidden_states: Tensor, real: Tensor) -> Tensor:
    """Undo the packing of level 0: (B, L, D) to the (B, T, D) columns of the input, zero at padding."""
    slots = (real.cumsum(1) - 1).clamp(min=0)
    if hidden_states.shape[1] == 0:
        return hidden_states.new_zeros(*real.shape, hidden_states.shape[2])
    return gather_tokens(hidden_states, slots).masked_fill(~real[..., None], 0)


@torch.no_grad()
def routing_record(
    stream: Tensor, parent: Tokens, tokens: Tokens, before: Tensor, contribution: Tensor
) -> RoutingRecord:
    """What one span did.

    Args:
        stream: (B, T, D) of the parent before the span.
        parent: level outside.
        tokens: level inside, after the span.
        before: (B, K, D) the kept tokens before it.
        contribution: (B, K, D) that was added to the stream.
    """
    selection = tokens.selection
    assert selection is not None
    zeros = torch.zeros(stream.shape[:2], dtype=torch.float32, device=stream.device)

    def spread(values: Tensor) -> Tensor:
        values = values if selection.mask is None else values * selection.mask
        return zeros.scatter_add(1, selection.indices, values)

    return RoutingRecord(
        scores=selection.scores.detach(),
        parent_mask=_full(parent.mask, zeros),
        kept=tokens.positions,
        kept_in_parent=absolute(selection.indices, parent.past),
        weights=selection.weights.detach(),
        mask=_full(selection.mask, selection.weights),
        stream_norm=stream.float().norm(dim=-1),
        difference_norm=spread((tokens.hidden_states - before).float().norm(dim=-1)),
        contribution_norm=spread(contribution.float().norm(dim=-1)),
    )


def _full(mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask
