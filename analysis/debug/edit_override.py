"""The routing override that applies edits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subllm import SubllmForCausalLM
from subllm.routing import LevelTokens, Router, Selection
from subllm.routing.overrides import threshold_for

from ..trace.parts import Prompt
from .edits import Edit, EditKind, LevelKind
from .named_tokens import find_tokens, last_ones


@dataclass
class EditOverride:
    """Routers' decisions, changed by edits.

    Thresholds are moved first, then tokens are dropped and kept in the order of the edits, then what the level adds is
    scaled, and a budget comes last.

    Args:
        edits: the edits; one that names nothing in a prompt changes nothing there.
        prompts: the prompt that they are applied to, or the prompt of each row. Tokens after it are only affected by
            edits that name no tokens, and by those that name the last ones.
        held: (S, T) which tokens are kept in place of those that routers and edits would keep; only weights follow.

    Attributes:
        thresholds: by level and number of the edit, the threshold that reached a retention on the prompt, or (B, 1) on
            each prompt. It stays in force for the tokens that follow.
    """

    edits: Sequence[Edit]
    prompts: Prompt | Sequence[Prompt]
    held: Sequence[Tensor] | None = None
    thresholds: dict[tuple[int, int], float | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prompts = [self.prompts] if isinstance(self.prompts, Prompt) else self.prompts
        self._lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        self._named = [_table(edit, prompts) for edit in self.edits]

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Select tokens at a level, as `subllm.routing.Override` does."""
        mine = [number for number, edit in enumerate(self.edits) if edit.applies(level)]
        edits = [self.edits[number] for number in mine]
        threshold: float | Tensor | None = None
        if any(edit.kind.needs_scores for edit in edits):
            scores = router.score(tokens.hidden_states)
            threshold = self._threshold(level, router, edits, scores, tokens)
            selection = router.decide(tokens, scores, threshold)
        else:
            selection = router.select(tokens, training=False)
        if self.held is not None:
            held, weights = self.held[level - 1][tokens.positions], router.weigh(tokens, threshold)
            selection = Selection.of(tokens, held, weights, everywhere=router.merges_tokens)
        if not mine:
            return selection
        kept, weights = selection.kept, selection.weights
        edited, protected = torch.zeros_like(kept), torch.zeros_like(kept)
        for number, edit in zip(mine, edits, strict=True):
            if edit.kind is EditKind.DENSE:
                kept, weights = torch.ones_like(kept), torch.ones_like(weights)
            elif edit.kind.names_tokens:
                here = self._here(number, tokens)
                edited = edited | here
                if edit.kind is EditKind.KEEP:
                    kept, protected, weights = kept | here, protected | here, weights.masked_fill(here, 1.0)
                else:
                    kept, protected = kept & ~here, protected & ~here
        for edit in edits:
            if edit.kind is EditKind.BYPASS:
                weights = weights * edit.value
        budgets = [int(edit.value) for edit in edits if edit.kind is EditKind.BUDGET]
        if budgets:
            kept = kept & (protected | _has_room(tokens, kept, min(budgets)))
        kept = kept if self.held is None else selection.kept
        return Selection.of(
            tokens, kept, weights, selection.scores, selection.threshold, edited, everywhere=router.merges_tokens
        )

    def _here(self, number: int, tokens: LevelTokens) -> Tensor:
        """(B, T) whether an edit names these tokens."""
        table = self._named[number] = self._named[number].to(tokens.positions.device)
        places = tokens.positions.clamp(max=table.shape[1] - 1)
        return table.expand(len(places), -1).gather(1, places)

    def _threshold(
        self, level: int, router: Router, edits: Sequence[Edit], scores: Tensor, tokens: LevelTokens
    ) -> float | Tensor:
        """Threshold of the level: the router's own and what the edits move it by, one number, (1, 1) or (B, 1)."""
        usual = router.usual_threshold
        total: float | Tensor = usual.to(scores.device) if isinstance(usual, Tensor) else usual
        for number, edit in enumerate(edits):
            if edit.kind is EditKind.THRESHOLD:
                total = total + edit.value
            elif edit.kind is EditKind.RETENTION:
                if (level, number) not in self.thresholds:
                    present = tokens.positions < self._lengths.to(tokens.positions.device)
                    present = present if tokens.mask is None else present & tokens.mask
                    found = [threshold_for(row[real], edit.value) for row, real in zip(scores, present, strict=True)]
                    self.thresholds[level, number] = found[0] if len(found) == 1 else scores.new_tensor(found)[:, None]
                total = self.thresholds[level, number]
        return total


def kinds_of(model: SubllmForCausalLM) -> list[LevelKind]:
    """(S,) kind of each level of a model."""
    return [LevelKind(router.scores_tokens, router.stride > 1) for router in model.model.routers]


def _table(edit: Edit, prompts: Sequence[Prompt]) -> Tensor:
    """(R, longest + 1) whether an edit names each token of the prompts; behind a prompt, whether it names the rest."""
    table = torch.zeros(len(prompts), max(map(len, prompts)) + 1, dtype=torch.bool)
    for row, prompt in zip(table, prompts, strict=True):
        named = find_tokens(edit.tokens, prompt) if edit.kind.names_tokens else ()
        row[: len(prompt)][[token for token in named if token < len(prompt)]] = True
        row[len(prompt) :] = last_ones(edit.tokens) is not None
    return table


def _has_room(tokens: LevelTokens, kept: Tensor, budget: int) -> Tensor:
    """(B, T) whether a level has kept fewer tokens than its budget before each token.

    Args:
        tokens: tokens of the level outside.
        kept: (B, T) tokens that it is to keep while there is room. Once there is none, there is none for later tokens
            either, so that what it would have kept tells where that is.
        budget: number of tokens.
    """
    kept = kept if tokens.mask is None else kept & tokens.mask
    past = 0 if tokens.kept_past is None else tokens.kept_past.to(kept.device).column
    return kept.cumsum(1) - kept.long() + past < budget
