"""The record of what the routers of a forward pass decided, and of what followed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .selection import LevelTokens, Packing, Selection


@dataclass(frozen=True)
class RoutingRecord:
    """One router's selection in one forward pass, and the norms of what the level's blocks changed.

    Every array is (B, T) over the T new tokens of the pass, whatever the level: token 0 of a row is its first real one,
    whichever side of the input was padded, and padding is at the end.

    Attributes:
        reached: True where the token reached the level's router; False where an outer level dropped it, and at padding.
        kept: True where the level's blocks process the token.
        edited: True where an edit named the token.
        weights: float32, as used; 0 where nothing was added. In training minus that of the paired discarded token.
        scores: float32 importance before the threshold, NaN where the token did not reach the router; None if the
            router does not score.
        threshold: (B,) threshold of the scores; None without scores, or where training kept the highest ones.
        stream_norm: L2 norm of the residual stream before the level; NaN where the token did not reach its router.
        difference_norm: L2 norm of f(x) - x, the change by the level's blocks before weighting; 0 at dropped tokens,
            NaN where the token did not reach the router.
        contribution_norm: L2 norm of what was added to the stream, β ⊙ a (f(x) - x); 0 and NaN as above.
    """

    reached: Tensor
    kept: Tensor
    edited: Tensor
    weights: Tensor
    scores: Tensor | None
    threshold: Tensor | None
    stream_norm: Tensor
    difference_norm: Tensor
    contribution_norm: Tensor

    @property
    def above_threshold(self) -> Tensor | None:
        """(B, T) score minus threshold, positive where the rule keeps it; NaN where it did not reach the router."""
        return None if self.scores is None or self.threshold is None else self.scores - self.threshold[:, None]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        tokens: LevelTokens,
        columns: Tensor | None,
        width: int,
        selection: Selection,
        packing: Packing,
        entered: Tensor,
        processed: Tensor,
        added: Tensor,
    ) -> "RoutingRecord":
        """Record one level.

        Args:
            tokens: tokens of the level outside, before the level was entered.
            columns: (B, P) column of each of these tokens in the pass; None if they are all of its tokens.
            width: T, number of new tokens in the pass.
            selection: what the router decided.
            packing: where the kept tokens are.
            entered: (B, K, D) stream of the kept tokens before the level's blocks.
            processed: (B, K, D) stream of the kept tokens after the level's blocks.
            added: (B, K, D) what was added to the stream.
        """
        reached = torch.ones_like(selection.kept) if tokens.mask is None else tokens.mask

        def spread(values: Tensor, elsewhere: float | bool) -> Tensor:
            values = values.detach()
            if tokens.mask is not None:
                values = values.masked_fill(~tokens.mask, elsewhere)
            if columns is None:
                return values
            return values.new_full((len(values), width), elsewhere).scatter(1, columns, values)

        def norms(kept: Tensor) -> Tensor:
            found = kept.float().norm(dim=-1)
            found = found if packing.mask is None else found * packing.mask
            here = torch.zeros(selection.kept.shape, device=found.device)
            return spread(here.scatter_add(1, packing.indices, found), torch.nan)

        threshold = selection.threshold
        if isinstance(threshold, Tensor):
            threshold = threshold.float().flatten().expand(len(reached))
        elif threshold is not None:
            threshold = torch.full((len(reached),), threshold, device=reached.device)
        return cls(
            reached=spread(reached, False),
            kept=spread(selection.kept, False),
            edited=spread(torch.zeros_like(selection.kept) if selection.edited is None else selection.edited, False),
            weights=spread(selection.weights, 0.0),
            scores=None if selection.scores is None else spread(selection.scores, torch.nan),
            threshold=threshold,
            stream_norm=spread(tokens.hidden_states.float().norm(dim=-1), torch.nan),
            difference_norm=norms(processed - entered),
            contribution_norm=norms(added),
        )


def routing_arrays(records: Sequence[RoutingRecord], length: int, row: int = 0) -> dict[str, np.ndarray]:
    """The routing of one row as arrays.

    Args:
        records: one record per level, S in all.
        length: T, number of tokens of the row.
        row: index of the row in the batch.

    Returns:
        `reached`, `kept` and `edited`, (S, T) bool; `weights`, `scores` (NaN too where the router does not score),
        `stream_norm`, `difference_norm` and `contribution_norm`, (S, T) float32; `thresholds`, (S,) float32, NaN where
        there is none.
    """

    def stacked(name: str, kind: Any) -> np.ndarray:
        found: np.ndarray = np.full((len(records), length), np.nan if kind is np.float32 else False, dtype=kind)
        for level, record in enumerate(records):
            values = getattr(record, name)
            if values is not None:
                found[level] = values[row, :length].cpu().numpy()
        return found

    arrays = {name: stacked(name, np.bool_) for name in ("reached", "kept", "edited")}
    names = ("weights", "scores", "stream_norm", "difference_norm", "contribution_norm")
    arrays |= {name: stacked(name, np.float32) for name in names}
    thresholds = [np.nan if record.threshold is None else record.threshold[row].item() for record in records]
    return arrays | {"thresholds": np.asarray(thresholds, dtype=np.float32)}


def first_format(scores: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays that older files lack: they hold unedited runs of SUBLLM's router, and no decisions.

    Args:
        scores: (S, T), NaN where the token did not reach the router.
        kept: (S, T) bool.

    Returns:
        `reached`, `weights` and `thresholds` as of `routing_arrays`.
    """
    weights = np.where(kept, np.clip(np.nan_to_num(scores), 0, 1), 0).astype(np.float32)
    return {"reached": ~np.isnan(scores), "weights": weights, "thresholds": np.zeros(len(scores), np.float32)}
