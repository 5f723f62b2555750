"""The record of what a forward pass did with its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .structure import Structure


@dataclass(frozen=True)
class RoutingRecord:
    """What one subsampling module and its upsampling and bypass did in one forward pass.

    Rows are packed: token 0 of a row is its first real token, whichever side of the input was padded, and padding is
    at the end. After cached calls, positions and indices go on counting where the last call stopped, while `scores`,
    `parent_mask` and the norms cover the new tokens only.

    Letters: B batch, T tokens of the parent sequence, K kept tokens of the row that keeps most.

    Attributes:
        scores: (B, T) importance before clamping, float32.
        parent_mask: (B, T) False at padding.
        kept: (B, K) position of each kept token in its row's prompt.
        kept_in_parent: (B, K) index of each kept token in the parent sequence.
        weights: (B, K) clamp(score, 0, 1); in training minus the weight of the paired discarded token.
        mask: (B, K) False at padding.
        stream_norm: (B, T) L2 norm of the residual stream before the span.
        difference_norm: (B, T) L2 norm of f(x) - x, what the span changed, before weighting; 0 at dropped tokens.
        contribution_norm: (B, T) L2 norm of β ⊙ a (f(x) - x), what was added to the stream; 0 at dropped tokens.
    """

    scores: Tensor
    parent_mask: Tensor
    kept: Tensor
    kept_in_parent: Tensor
    weights: Tensor
    mask: Tensor
    stream_norm: Tensor
    difference_norm: Tensor
    contribution_norm: Tensor


@dataclass(frozen=True)
class StreamState:
    """The residual stream after one character of the structure, as an observer of the forward sees it.

    Attributes:
        step: 0 after the embedding, then one more for every character of the structure.
        symbol: that character; "" after the embedding, and where a forward resumes.
        span: innermost span that the tokens are in, or None on the full sequence.
        hidden_states: (B, L, D) stream of the tokens present, packed.
        positions: (B, L) their positions in their row's prompt.
        mask: (B, L) False at padding, or None where there is none.
    """

    step: int
    symbol: str
    span: int | None
    hidden_states: Tensor
    positions: Tensor
    mask: Tensor | None


def level_arrays(structure: Structure, records: Sequence[RoutingRecord], length: int) -> dict[str, np.ndarray]:
    """The routing of one row as arrays over the prompt's tokens.

    Args:
        structure: of the model.
        records: of all S spans.
        length: T, tokens of the row.

    Returns:
        `scores`, `stream_norm`, `difference_norm` and `contribution_norm`, each (S, T) float32, NaN where the token did
        not reach the span, and `kept`, (S, T) bool.
    """
    shape = (len(records), length)
    arrays = {
        name: np.full(shape, np.nan, dtype=np.float32)
        for name in ("scores", "stream_norm", "difference_norm", "contribution_norm")
    }
    kept = np.zeros(shape, dtype=bool)
    for span, record in zip(structure.spans, records, strict=True):
        present = slice(None) if span.parent is None else records[span.parent].kept[0].cpu().numpy()
        for name, array in arrays.items():
            array[span.index, present] = getattr(record, name)[0].float().cpu().numpy()
        kept[span.index, record.kept[0].cpu().numpy()] = True
    return arrays | {"kept": kept}
