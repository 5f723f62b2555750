"""Windows of text through the model, several in a row, and what is recorded of every token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from subllm import Event, Probe, Ran, SubllmForCausalLM
from subllm.checkpoints.dense import DenseModel
from subllm.model.levels import Tokens
from subllm.model.light_heavy import LightHeavyBlock
from subllm.structure import BLOCK, OPEN

from ..errors import CorpusError
from ..guard import out_of_memory_reported
from .schema import Options

_CHUNK = 256  # positions whose logits exist at once: (chunk, V)
_QUERIES = 512  # whose attention exists at once: (H, queries, T)


@dataclass(frozen=True, eq=False)
class Numbers:
    """What was recorded of the N tokens of a window, as the columns of `analysis.corpus.schema.token_schema`.

    Attributes:
        kept: (S, N) bool.
        scores: (S, N) float32.
        norms: (S, N) float32.
        surprisal: (N,) float32.
        entropy: (N,) float32.
        dense_surprisal: (N,) float32; NaN without a dense model.
        agrees: (N,) bool, whether both models rank the same next token first; False without a dense model.
        attention: (N,) float32; NaN if it is not measured.
    """

    kept: np.ndarray
    scores: np.ndarray
    norms: np.ndarray
    surprisal: np.ndarray
    entropy: np.ndarray
    dense_surprisal: np.ndarray
    agrees: np.ndarray
    attention: np.ndarray


class NotFinite(Exception):  # noqa: N818 - the caller names the document
    """Numbers that stopped being finite on a text."""


def batches(lengths: Sequence[int], options: Options) -> Iterator[list[list[int]]]:
    """Divide windows into batches of rows; windows of like length come together, so that little is padded or masked.

    Args:
        lengths: tokens of every window.
        options: which say how many rows and tokens.

    Yields:
        Rows of a batch, each of which is a list of windows.
    """
    rows: list[list[int]] = []
    free = 0
    for window in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        if not rows or lengths[window] > free:
            if len(rows) == options.rows:
                yield rows
                rows = []
            rows.append([])
            free = max(options.row_tokens, lengths[window])
        rows[-1].append(window)
        free -= lengths[window]
    if rows:
        yield rows


class Reader:
    """A model, and perhaps a dense one beside it, that read windows.

    Args:
        model: in evaluation mode.
        dense: that reads beside it; None for none.
        attention: whether attention is measured.

    Raises:
        CorpusError: if it is to be measured, and no block before the first level has all tokens.
    """

    def __init__(self, model: SubllmForCausalLM, dense: DenseModel | None, *, attention: bool) -> None:
        self.model, self.dense = model, dense
        self._attended = _block_before_levels(model) if attention else -1
        if attention and self._attended < 0:
            raise CorpusError(
                "The attention that tokens receive is measured in the last block before Level 1, and the structure "
                "{structure} has no block that all tokens run through there. Leave out --attention.",
                structure=model.config.structure,
            )

    @torch.inference_mode()
    def read(self, rows: list[list[np.ndarray]]) -> list[list[Numbers]]:
        """What is recorded of the windows of a batch.

        Args:
            rows: ids (N,) of the windows of every row.

        Raises:
            NotFinite: if numbers stop being finite.
            RunStopped: when memory runs out.
        """
        device = self.model.device
        lengths = [sum(map(len, row)) for row in rows]
        width = max(lengths)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions = np.zeros_like(ids)  # at padding, every token is a text of its own
        for number, row in enumerate(rows):
            ids[number, : lengths[number]] = np.concatenate(row)
            positions[number, : lengths[number]] = np.concatenate([np.arange(len(window)) for window in row])
        inputs = torch.from_numpy(ids).to(device)
        places = None if all(len(row) == 1 for row in rows) else torch.from_numpy(positions).to(device)
        mask = None if min(lengths) == width else torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        real = torch.ones(len(rows), width, dtype=torch.bool) if mask is None else mask
        attention = torch.full((len(rows), width), torch.nan, device=device)

        def observe(event: Event) -> None:
            if isinstance(event, Ran) and event.block == self._attended:
                self._attend(event.before, rows, attention)

        with out_of_memory_reported(sum(lengths), self.model):
            output = self.model.model(
                inputs,
                attention_mask=None if mask is None else mask.to(device),
                position_ids=places,
                use_cache=False,
                probe=Probe(record=True, observe=observe if self._attended >= 0 else None),
            )
            flat = real.flatten().to(device)
            hidden = output.last_hidden_state.flatten(0, 1)[flat]
            other = None
            if self.dense is not None:
                read = self.dense.model.model(inputs, position_ids=places, use_cache=False)
                other = read.last_hidden_state.flatten(0, 1)[flat]
            likelihood = self._likelihood(hidden, other, inputs.flatten()[flat])
        if not hidden.isfinite().all():
            raise NotFinite
        missing = torch.full_like(attention, torch.nan)
        columns = [
            attention,
            *(record.kept.float() for record in output.routing),
            *(missing if record.scores is None else record.scores for record in output.routing),
            *(record.stream_norm for record in output.routing),
        ]
        table = torch.stack([column.to(device).flatten()[flat] for column in columns])
        found = torch.cat([likelihood, table]).cpu().numpy()  # one wait for the device
        return self._split(found, rows)

    def _likelihood(self, hidden: Tensor, other: Tensor | None, ids: Tensor) -> Tensor:
        """(4, N) surprisal and entropy, the dense model's surprisal, and agreement, at the token that predicts."""
        targets = torch.cat([ids[1:], ids[:1]])
        found = []
        for start in range(0, len(ids), _CHUNK):
            rows = slice(start, start + _CHUNK)
            logs = self.model.lm_head(hidden[rows]).float().log_softmax(-1)
            surprisal = -logs.gather(1, targets[rows, None])[:, 0]
            entropy = -torch.linalg.vecdot(logs.exp(), logs)
            if other is None or self.dense is None:
                beside, agrees = torch.full_like(surprisal, torch.nan), torch.zeros_like(surprisal)
            else:
                likeliest = logs.argmax(-1)
                logs = self.dense.model.lm_head(other[rows]).float().log_softmax(-1)
                beside = -logs.gather(1, targets[rows, None])[:, 0]
                agrees = (likeliest == logs.argmax(-1)).float()
            found.append(torch.stack([surprisal, entropy, beside, agrees]))
        return torch.cat(found, dim=1)

    def _split(self, table: np.ndarray, rows: list[list[np.ndarray]]) -> list[list[Numbers]]:
        """The columns (5 + 3S, N) of a batch, window by window."""
        ends = np.cumsum([len(window) for row in rows for window in row])
        parts = iter(np.split(table, ends[:-1], axis=1))
        return [[_numbers(next(parts)) for _ in row] for row in rows]

    def _attend(self, tokens: Tokens, rows: list[list[np.ndarray]], attention: Tensor) -> None:
        """Write the mean attention that later tokens of each window pay to every token."""
        block = self.model.model.layers[self._attended]
        layer, (cos, sin) = block.self_attn, tokens.rotary
        hidden = block.input_layernorm(tokens.hidden_states)
        shape = (*hidden.shape[:2], -1, layer.head_dim)
        queries = layer.q_proj(hidden).view(shape).transpose(1, 2)
        keys = layer.k_proj(hidden).view(shape).transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        keys = repeat_kv(keys, layer.num_key_value_groups)
        for number, row in enumerate(rows):
            start = 0
            for window in row:
                span = slice(start, start + len(window))
                attention[number, span] = _received(queries[number, :, span], keys[number, :, span], layer.scaling)
                start = span.stop


def _numbers(table: np.ndarray) -> Numbers:
    """Columns of one window, with what is predicted moved to the token that it is said of."""
    levels = (len(table) - 5) // 3
    kept, scores, norms = (table[5 + part * levels : 5 + (part + 1) * levels] for part in range(3))
    first = np.full((3, 1), np.nan, dtype=np.float32)
    surprisal, entropy, beside = np.concatenate([first, table[:3, :-1]], axis=1)
    return Numbers(kept > 0, scores, norms, surprisal, entropy, beside, table[3] > 0, table[4])


def _received(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """(N,) mean over heads and later tokens of the attention to each token, from queries and keys (H, N, E)."""
    heads, length = queries.shape[:2]
    places = torch.arange(length, device=queries.device)
    total = torch.zeros(length, device=queries.device)
    for start in range(0, length, _QUERIES):
        asking = places[start : start + _QUERIES, None]
        logits = (queries[:, start : start + _QUERIES] @ keys.transpose(1, 2) * scaling).float()
        shares = logits.masked_fill(places > asking, -torch.inf).softmax(-1)
        total += shares.masked_fill(places == asking, 0).sum((0, 1))
    return total / (heads * (length - 1 - places))  # 0 / 0 at the last token


def _block_before_levels(model: SubllmForCausalLM) -> int:
    """The last plain block before the first router decides; -1 if there is none."""
    found = -1
    for step in model.config.parsed_structure.steps:
        if step.symbol == OPEN or isinstance(model.model.layers[step.index], LightHeavyBlock):
            break
        if step.symbol == BLOCK:
            found = step.index
    return found
