"""The routing override that applies edits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subllm.routing import LevelTokens, Router, Selection
from subllm.routing.overrides import threshold_for

from ..trace.parts import Prompt
from .edits import Edit, EditKind


@dataclass
class EditOverride:
    """Routers' decisions, changed by edits.

    Thresholds are moved first, then tokens are dropped and kept in the order of the edits, then the bypass is scaled.

    Args:
        edits: edits that `check` accepted.
        prompt: the prompt that they are applied to. Tokens after it are only affected by edits that name no tokens.

    Attributes:
        thresholds: by level and number of the edit, the threshold that reached a retention on the prompt. It stays in
            force for the tokens that follow.
    """

    edits: Sequence[Edit]
    prompt: Prompt
    thresholds: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._named = [edit.named(self.prompt) for edit in self.edits]

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Select tokens at a level, as `subllm.routing.Override` does."""
        mine = [(edit, named) for edit, named in zip(self.edits, self._named, strict=True) if edit.applies(level)]
        if any(edit.kind.needs_scores for edit, _ in mine):
            scores = router.score(tokens.hidden_states)
            threshold = self._threshold(level, [edit for edit, _ in mine], scores, tokens)
            selection = router.decide(tokens, scores, threshold)
        else:
            selection = router.select(tokens, training=False)
        if not mine:
            return selection
        kept, weights, edited = selection.kept, selection.weights, torch.zeros_like(selection.kept)
        for edit, named in mine:
            if edit.kind is EditKind.DENSE:
                kept, weights = torch.ones_like(kept), torch.ones_like(weights)
            elif edit.kind.names_tokens:
                here = torch.isin(tokens.positions, torch.tensor(named, device=kept.device))
                edited = edited | here
                kept = kept | here if edit.kind is EditKind.KEEP else kept & ~here
                if edit.kind is EditKind.KEEP:
                    weights = weights.masked_fill(here, 1.0)
        for edit, _ in mine:
            if edit.kind is EditKind.BYPASS:
                weights = weights * edit.value
        return Selection.of(tokens, kept, weights, selection.scores, selection.threshold, edited)

    def _threshold(self, level: int, edits: Sequence[Edit], scores: Tensor, tokens: LevelTokens) -> float:
        """Threshold of the level: the sum of what the edits move it by."""
        total = 0.0
        for number, edit in enumerate(edits):
            if edit.kind is EditKind.THRESHOLD:
                total += edit.value
            elif edit.kind is EditKind.RETENTION:
                if (level, number) not in self.thresholds:
                    present = tokens.positions < len(self.prompt)
                    present = present if tokens.mask is None else present & tokens.mask
                    self.thresholds[level, number] = threshold_for(scores[present] - total, edit.value)
                total += self.thresholds[level, number]
        return total
