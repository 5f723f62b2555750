"""The record of what the routers of a forward pass decided, and of what followed from it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from .selection import LevelTokens, Packing, Selection

_FLAGS = ("reached", "kept", "edited")
_NUMBERS = ("weights", "scores", "stream_norm", "difference_norm", "contribution_norm")


@dataclass(frozen=True)
class RoutingRecord:
    """One router's selection in one forward pass, and the norms of what the level's blocks changed.

    Every array is (B, T) over the T new tokens of the pass, whatever the level: token 0 of a row is its first real one,
    whichever side of the input was padded, and padding is at the end.

    Attributes:
        reached: True where the token reached the level's router; False where an outer level dropped it, and at padding.
        kept: True where the level's blocks process the token.
        edited: True where an edit named the token.
        weights: float32, as used; 0 where nothing was added. Those of SUBLLM are at most 1, and in training minus that
            of the paired discarded token; those of Mixture-of-Depths may be of any size and sign.
        scores: float32 importance before the threshold, NaN where the token did not reach the router; None if the
            router does not score.
        threshold: (B,) threshold of the scores; None without scores, or where training kept the highest ones.
        stream_norm: L2 norm of the residual stream before the level; NaN where the token did not reach its router.
        difference_norm: L2 norm of f(x) - x, the change by the level's blocks before weighting; 0 where nothing was
            added, NaN where the token did not reach the router. A level that merges tokens adds to all of them.
        contribution_norm: L2 norm of what was added to the stream, β ⊙ a (f(x) - x), or a (f(x) - x) where there is no
            bypass; 0 and NaN as above.
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

    def repeated(self, batch: int) -> "RoutingRecord":
        """The record with its one row repeated `batch` times, without a copy."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        present = {name: value.expand(batch, *value.shape[1:]) for name, value in values.items() if value is not None}
        return replace(self, **present)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        tokens: LevelTokens,
        columns: Tensor | None,
        width: int,
        selection: Selection,
        packing: Packing | None,
        difference: Tensor,
        added: Tensor,
    ) -> "RoutingRecord":
        """Record one level.

        Args:
            tokens: tokens of the level outside, before the level was entered.
            columns: (B, P) column of each of these tokens in the pass; None if they are all of its tokens.
            width: T, number of new tokens in the pass.
            selection: what the router decided.
            packing: where the kept tokens are; None if something was added to all tokens.
            difference: (B, K, D) f(x) - x at the kept tokens, or (B, T, D) at all.
            added: what was added to the stream, at the same tokens.
        """
        reached = torch.ones_like(selection.kept) if tokens.mask is None else tokens.mask

        def spread(values: Tensor, elsewhere: float | bool) -> Tensor:
            values = values.detach()
            if tokens.mask is not None:
                values = values.masked_fill(~tokens.mask, elsewhere)
            if columns is None:
                return values
            return values.new_full((len(values), width), elsewhere).scatter(1, columns, values)

        def norms(values: Tensor) -> Tensor:
            found = values.float().norm(dim=-1)
            if packing is None:
                return spread(found, torch.nan)
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
            difference_norm=norms(difference),
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
    names = (*_FLAGS, *_NUMBERS)

    def flat(record: RoutingRecord) -> Tensor:
        """All fields one after another, and the threshold."""
        missing = torch.full((length,), torch.nan, device=record.kept.device)
        arrays = [getattr(record, name) for name in names]
        rows = [missing if values is None else values[row, :length].float() for values in arrays]
        last = missing.new_full((1,), torch.nan) if record.threshold is None else record.threshold[row].float()[None]
        return torch.cat([*rows, last]).to(records[0].kept.device)  # levels may lie on several devices

    if records:
        found = torch.stack([flat(record) for record in records]).cpu().numpy()  # one wait for the device
    else:
        found = np.zeros((0, len(names) * length + 1), dtype=np.float32)
    arrays = dict(zip(names, np.split(found[:, :-1], len(names), axis=1), strict=True))
    return arrays | {name: arrays[name].astype(np.bool_) for name in _FLAGS} | {"thresholds": found[:, -1]}


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
