"""Hidden states and attention in the columns of the input, whichever level computed them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure import WHOLE, Structure
from .cache import SubllmCache
from .levels import Tokens, unpack


class Columns:
    """Collects, block by block, what `output_hidden_states` and `output_attentions` ask for.

    Args:
        structure: of the model.
        hidden_states: as in transformers: True for all, or the number or numbers of those wanted.
        real: (B, cached + T) False at padding, if attention is wanted.
    """

    def __init__(self, structure: Structure, hidden_states: Any, real: Tensor | None) -> None:
        self._structure = structure
        count = structure.num_blocks + 1
        if isinstance(hidden_states, bool) or hidden_states is None:
            self._wanted = set(range(count)) if hidden_states else set()
        else:
            numbers = [hidden_states] if isinstance(hidden_states, int) else hidden_states
            self._wanted = {number % count for number in numbers if -count <= number < count}
        self._hidden_states: tuple[Tensor | None, ...] | None = () if hidden_states else None
        self._real = real
        self._attentions: list[tuple[Tokens, list[Tensor | None]]] = []

    def before(self, levels: Sequence[Tokens]) -> list[Tensor | None] | None:
        """Note a block that is about to run.

        Args:
            levels: tokens of the open levels, from the whole sequence to those of the block.

        Returns:
            List that the block has to append its attention to, if that is wanted.
        """
        if self._hidden_states is not None:
            wanted = len(self._hidden_states) in self._wanted
            self._hidden_states += (_whole_stream(levels) if wanted else None,)
        if self._real is None:
            return None
        self._attentions.append((levels[-1], []))
        return self._attentions[-1][1]

    def hidden_states(self, last: Tensor, padding: Tensor | None) -> tuple[Any, ...] | None:
        """The input of every block (B, T, D), zero at padding, and the final norm's output; None for those not wanted.

        Args:
            last: (B, T, D) output of the final norm.
            padding: (B, T) False at padding, or None if no token was moved.
        """
        if self._hidden_states is None:
            return None
        if padding is not None:
            self._hidden_states = tuple(
                None if states is None else unpack(states, padding) for states in self._hidden_states
            )
        return (*self._hidden_states, last if len(self._hidden_states) in self._wanted else None)

    def attentions(
        self, new: int, heads: int, padding: Tensor | None, cache: SubllmCache | None
    ) -> tuple[Tensor, ...] | None:
        """The attention of every block (B, H, T, cached + T), zero at tokens that it does not process.

        Args:
            new: T, number of new columns.
            heads: H, number of heads.
            padding: (B, T) False at padding, or None if no token was moved.
            cache: cache with the new tokens, if there is one.
        """
        real = self._real
        if real is None:
            return None
        order = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # column of each token of a row
        read = real.shape[1]
        moved = padding is not None if cache is None else any(tokens != read for tokens in cache.levels[WHOLE].rows)
        found = []
        for level, (tokens, given) in zip(self._structure.block_levels, self._attentions, strict=True):
            if not given:  # the level was empty
                found.append(tokens.hidden_states.new_zeros(len(real), heads, new, read))
                continue
            probabilities = given[0]
            assert probabilities is not None
            if level == WHOLE and not moved:
                found.append(probabilities)
                continue
            held = None if cache is None else cache.levels[level].positions
            keys = tokens.positions if held is None else held[:, : probabilities.shape[3]]
            found.append(_in_columns(probabilities, tokens, keys, order.to(probabilities.device), new))
        return tuple(found)


def _whole_stream(levels: Sequence[Tokens]) -> Tensor:
    """(B, T, D) streams of all tokens of the pass, each as it stands in the innermost level that it entered."""
    stream = levels[0].hidden_states
    for tokens in levels[1:]:
        tokens, values = tokens.at(stream.device), tokens.hidden_states.to(stream)
        assert tokens.columns is not None
        columns = tokens.columns[..., None].expand_as(values)
        if tokens.mask is not None:
            values = torch.where(tokens.mask[..., None], values, stream.gather(1, columns))
        stream = stream.scatter(1, columns, values)
    return stream


def _in_columns(probabilities: Tensor, tokens: Tokens, keys: Tensor, order: Tensor, new: int) -> Tensor:
    """(B, H, T, cached + T) attention, out of the (B, H, L, slots) of a level.

    Args:
        probabilities: attention of the level's new tokens. It is 0 at slots that a row does not use.
        tokens: these tokens.
        keys: (B, slots) position of the token in each slot; anything in slots that a row does not use.
        order: (B, cached + T) column of each token of a row.
        new: T, number of new columns.
    """
    tokens, keys = tokens.at(order.device), keys.to(order.device)
    if tokens.mask is not None:
        probabilities = probabilities.masked_fill(~tokens.mask[:, None, :, None], 0)
    batch, heads, queries, _ = probabilities.shape
    columns = order.gather(1, keys.clamp(max=order.shape[1] - 1))[:, None, None]
    wide = probabilities.new_zeros(batch, heads, queries, order.shape[1])
    wide = wide.scatter_add(3, columns.expand_as(probabilities), probabilities)
    rows = (order.gather(1, tokens.positions) - (order.shape[1] - new)).clamp(min=0)[:, None, :, None]
    return wide.new_zeros(batch, heads, new, order.shape[1]).scatter_add(2, rows.expand_as(wide), wide)
