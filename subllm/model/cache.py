"""Key/value cache of a SUBLLM: each level caches only its own tokens.

A level is the set of tokens that a run of blocks sees: level 0 is the whole sequence, every other one the tokens that
its router keeps. Levels differ in length, and so do the rows of a batch inside a level. Rows are packed to the left,
without holes: token i of a row lies in slot i, so a query in slot i may attend to the slots up to i, and no other
mask is needed. A forward pass announces its new tokens with `Level.begin` and makes them permanent with
`SubllmCache.commit`; a pass that is interrupted leaves the cache as it was.
"""

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ..configuration import SubllmConfig
from ..routing import Carried, Lengths
from ..structure import WHOLE
from .graphs import CAPTURES, Graphs

_GROWTH = 1.25  # room left when a buffer has to grow, so that appending a token is amortised


class Level:
    """The tokens of one level: how many each row has, and where they stand in the prompt.

    Attributes:
        lengths: cached tokens per row; None before the first forward pass begins.
        counts: new tokens per row in the forward pass under way.
        positions: (B, slots) position in the row's prompt of every cached token, in its slot.
        carried: what the level's router needs of earlier passes, if it merges tokens.
    """

    def __init__(self) -> None:
        self.lengths: Lengths | None = None
        self.counts: Lengths | None = None
        self.positions: Tensor | None = None
        self.carried: Carried | None = None
        self._new_positions: Tensor | None = None
        self._new_carried: Carried | None = None
        self._slots: Tensor | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """Cached tokens of each row; empty before the first forward pass begins."""
        return () if self.lengths is None else self.lengths.rows

    @property
    def max_length(self) -> int:
        """Number of cached tokens in the longest row."""
        return max(self.rows, default=0)

    @property
    def total(self) -> int:
        """Slots in use once the new tokens are appended."""
        if self.lengths is None or self.counts is None:
            return self.max_length
        return (self.lengths + self.counts).longest

    def past(self, rows: int) -> Lengths:
        """Cached tokens of each row; none of so many rows before a forward pass has ended."""
        return Lengths.even(0, rows) if self.lengths is None or self.positions is None else self.lengths

    def begin(self, counts: Lengths, positions: Tensor) -> Lengths:
        """Announce the new tokens of this forward pass.

        Args:
            counts: new tokens per row.
            positions: (B, width) their positions in the prompt, packed; width is the largest count.

        Returns:
            The tokens that each row had before.
        """
        self.lengths = self.past(len(counts.rows))
        self.counts, self._new_positions, self._slots = counts, positions, None
        self._new_carried = None
        return self.lengths

    def carry(self, carried: Carried | None) -> None:
        """Announce what the next forward pass gets as `carried`."""
        self._new_carried = carried

    def commit(self) -> None:
        """Make the announced tokens part of the level."""
        if self._new_positions is None or self.lengths is None or self.counts is None:
            return
        if self.positions is None or self.max_length == 0:
            self.positions = self._new_positions.contiguous()  # of its own for each row, to be written to
        elif self._new_positions.shape[1]:
            self.positions = self.append(self.positions, self._new_positions, dim=1)
        self.lengths += self.counts
        self.carried = self._new_carried
        self.counts, self._new_positions, self._new_carried, self._slots = None, None, None, None

    def append(self, buffer: Tensor, new: Tensor, dim: int) -> Tensor:
        """Write the new tokens' values into their slots, growing the buffer where it is too short.

        The padding of a row with fewer new tokens than the others is written behind them, into slots that are still
        unused; the host would have to wait to find out which slots to skip.

        Args:
            buffer: slots along `dim`, rows along dimension 0.
            new: tensor of the same shape, except that `dim` holds the new tokens, packed.
            dim: dimension of the slots.

        Returns:
            The buffer, or the larger one that replaces it.
        """
        assert self.lengths is not None and self.counts is not None
        width = new.shape[dim]
        if torch.is_grad_enabled() and (new.requires_grad or buffer.requires_grad):
            buffer = buffer.clone()  # autograd needs the old values
        elif buffer.is_inference() and not torch.is_inference_mode_enabled():
            buffer = buffer.clone()  # the old one can only be written to in inference mode
        buffer = _with_room(buffer, self.max_length + width, dim)
        if isinstance(self.lengths.column, int):
            buffer.narrow(dim, self.lengths.column, width).copy_(new)
            return buffer
        if self._slots is None:
            column = self.lengths.column
            self._slots = column + torch.arange(width, device=column.device)  # (B, width)
        shape = [1] * new.ndim
        shape[0], shape[dim] = self._slots.shape
        return buffer.scatter_(dim, self._slots.to(new.device).view(shape).expand_as(new), new)

    def select_rows(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order; rows may repeat."""
        self.lengths = None if self.lengths is None else self.lengths.select(rows)
        self.counts = None
        if self.positions is not None:
            self.positions = self.positions.index_select(0, rows.to(self.positions.device))
        if self.carried is not None:
            self.carried = self.carried.select_rows(rows)

    def crop(self, limits: Lengths) -> None:
        """Remove the tokens at or after the given position of each row's prompt."""
        if self.positions is None or self.lengths is None:
            return
        limits = limits.to(self.positions.device)
        used = torch.arange(self.positions.shape[1], device=self.positions.device) < self.lengths.column
        self.lengths = Lengths.count(used & (self.positions < limits.column))


def _with_room(buffer: Tensor, slots: int, dim: int, room: int = 16) -> Tensor:
    """The buffer if it has so many slots along `dim`, else a copy with `room` for more."""
    capacity = buffer.shape[dim]
    if slots <= capacity:
        return buffer
    shape = list(buffer.shape)
    shape[dim] = int(slots * _GROWTH) + room
    grown = buffer.new_zeros(shape)
    grown.narrow(dim, 0, capacity).copy_(buffer)
    return grown


class LevelLayer(CacheLayerMixin):
    """Keys and values of one block, for the tokens of its level: (B, heads, slots, head_dim) each."""

    is_sliding = False
    is_croppable = True

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the first keys and values as they are; nothing is copied during the first pass."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values (B, heads, width, head_dim); return all in use."""
        if self.keys is None or self.values is None or self.level.max_length == 0:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        self.keys = self.level.append(self.keys, key_states, dim=2)
        self.values = self.level.append(self.values, value_states, dim=2)
        total = self.level.total
        return self.keys[:, :, :total], self.values[:, :, :total]

    def reserve(self, slots: int, room: int) -> None:
        """Have so many slots in every row, and `room` for more if the buffers must grow; they exist already."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = (_with_room(buffer, slots, 2, room) for buffer in (self.keys, self.values))

    def clear_unused(self) -> None:
        """Zero the slots that no token is in: a graph reads all, and 0 times a value that is not finite is not 0."""
        if self.keys is None or self.values is None or self.level.lengths is None:
            return
        device = self.keys.device
        if device.type in CAPTURES:
            slots = torch.arange(self.keys.shape[2], device=device)
            unused = (slots >= self.level.lengths.to(device).column).view(-1, 1, len(slots), 1)
            self.keys.masked_fill_(unused, 0)
            self.values.masked_fill_(unused, 0)

    def get_seq_length(self) -> int:
        """Number of cached tokens in the longest row."""
        return self.level.max_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys for `query_length` new tokens in every row."""
        return self.level.max_length + query_length, 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def select_rows(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        if self.keys is not None and self.values is not None:
            rows = rows.to(self.keys.device)
            self.keys, self.values = (held.index_select(0, rows) for held in (self.keys, self.values))

    def reset(self) -> None:
        """Empty the cache."""
        self.keys = self.values = None
        self.is_initialized = False

    @property
    def used_bytes(self) -> int:
        """Bytes of the keys and values of the tokens cached, all rows together."""
        if self.keys is None or self.values is None:
            return 0
        per_token = sum(t.element_size() * t.shape[1] * t.shape[3] for t in (self.keys, self.values))
        return sum(self.level.rows) * per_token


class SubllmCache(Cache):
    """Key/value cache with one list of tokens per level; see the module's docstring.

    Args:
        config: configuration of the model.

    Attributes:
        levels: level 0 for the whole sequence, then one per router. That of the routed keys of a light/heavy block has
            keys and values of its own; those of its queries and of its MLP have none.
        columns: columns of the input seen so far, padding included; what `generate` calls the sequence length.
        graphs: what was captured of the blocks, on devices that can.
    """

    def __init__(self, config: SubllmConfig) -> None:
        structure = config.parsed_structure
        self.levels = [Level() for _ in range(1 + structure.num_levels)]
        self.columns = 0
        self._blocks = [LevelLayer(self.levels[level]) for level in structure.block_levels]
        keys = {site.block: site.level for site in structure.sites if site.kind == "key_value"}
        self._heavy = {block: LevelLayer(self.levels[level]) for block, level in keys.items()}
        self._layers = [*self._blocks, *self._heavy.values()]
        self._merging = [level for level, router in enumerate(config.router_classes, 1) if router.merges_tokens]
        self.graphs = Graphs(structure, self._blocks)
        super().__init__(layers=list(self._blocks))

    def update_heavy(self, keys: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Append the new keys and values of a light/heavy block's heavy branch; return all in use."""
        return self._heavy[block].update(keys, values)

    def commit(self, columns: int) -> None:
        """Make the tokens of the forward pass permanent; `columns` of input were read."""
        for level in self.levels:
            level.commit()
        self.columns += columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the input seen so far, padding included, whatever the layer."""
        return self.columns

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Columns of the input seen so far."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, in that order (beam search)."""
        self.graphs.refuse("a beam search replaces the buffers at every token")
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        held = self.levels[WHOLE].positions
        if held is None:
            return
        indices = indices.to(held.device)  # once, not for every block
        for layer in self._layers:
            layer.select_rows(indices)
        for level in self.levels:
            level.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        lengths = self.levels[WHOLE].lengths
        if lengths is not None:
            self.batch_select_indices(torch.arange(len(lengths.rows)).repeat_interleave(repeats))

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be removed; a level that merges tokens holds the result of its last group only."""
        return not self._merging

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of every row, which must not be padding.

        Args:
            tokens_to_remove: number of tokens, negated, as in transformers' caches; 0 changes nothing.

        Raises:
            ValueError: if it is positive, which once meant the length to crop to, or the cache is not croppable.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}) is ambiguous; give the number of tokens to remove as a negative number: "
                f"crop(-{tokens_to_remove})."
            )
        if tokens_to_remove and not self.is_croppable:
            raise ValueError(
                f"Level {self._merging[0]} merges tokens, and its cache holds what its last group became, but not what "
                "the groups before became; tokens cannot be removed from it. Read the text again with an empty cache; "
                "assisted and prompt-lookup generation do not work with the router 'stride'."
            )
        removed = min(-tokens_to_remove, self.columns)
        lengths = self.levels[WHOLE].lengths
        if lengths is not None:
            limits = lengths + Lengths.even(-removed, len(lengths.rows))
            for level in self.levels:
                level.crop(limits)
            for layer in self._layers:
                layer.clear_unused()
        self.columns -= removed

    def reset(self) -> None:
        """Empty the cache."""
        for level in self.levels:
            level.lengths, level.counts, level.positions, level.carried = None, None, None, None
        for layer in self._layers:
            layer.reset()
        self.graphs.reset()
        self.columns = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the keys and values of all cached tokens, and of what levels that merge tokens carry."""
        return sum(self.level_bytes)

    @property
    def level_bytes(self) -> list[int]:
        """The same for every level apart."""
        sizes = [0 if level.carried is None else level.carried.used_bytes for level in self.levels]
        for layer in self._layers:
            sizes[self.levels.index(layer.level)] += layer.used_bytes
        return sizes
