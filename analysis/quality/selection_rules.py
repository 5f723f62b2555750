"""Rules that choose the tokens of a level in place of its router, several in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from subllm import Selection
from subllm.model.levels import Snapshot
from subllm.routing import LevelTokens, Override, Router

DRAWS = 5  # of the random rule
FIRST = 4  # tokens that the rule of the first and the most recent keeps, as StreamingLLM does; half of all at most
_FIRST_SURPRISAL = 1e9  # of the first token, which nothing predicts; finite, unlike that of the answer's kept tokens


class SelectionRule(StrEnum):
    """How a level chooses the tokens that it keeps; the oracle and the recorded run are no simple rules."""

    RECORDED = "recorded"
    RANDOM = "random"
    EVEN = "even"
    ENDS = "ends"
    NORM = "norm"
    SURPRISAL = "surprisal"
    RARE = "rare"  # where it is known how often tokens occur in a corpus
    ORACLE = "oracle"

    @property
    def simple(self) -> bool:
        """Whether it needs neither training nor passes of its own."""
        return self not in (SelectionRule.RECORDED, SelectionRule.ORACLE)


def plan_of(*, oracle: bool, rare: bool = False) -> list[tuple[SelectionRule, int]]:
    """Rules with weights of 1 in the order of their runs, and the number of each draw."""
    optional = {SelectionRule.ORACLE: oracle, SelectionRule.RARE: rare}
    rules = [rule for rule in SelectionRule if optional.get(rule, True)]
    return [(rule, draw) for rule in rules for draw in (range(1, DRAWS + 1) if rule == SelectionRule.RANDOM else (0,))]


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The recorded run with the answer behind it; N is the number of all tokens.

    Attributes:
        length: T, number of tokens of the prompt.
        kept: (S, N) on the host.
        reached: (S, N) on the host.
        answered: (S, N) on the device: a token of the answer that the level kept.
        levels: levels whose selection is replaced.
        hidden_states: (1, N, D) last hidden states.
        snapshot: state before the first level that is replaced.
    """

    length: int
    kept: np.ndarray
    reached: np.ndarray
    answered: Tensor
    levels: list[int]
    hidden_states: Tensor
    snapshot: Snapshot

    def wanted(self, level: int, reached: int) -> int:
        """Number of tokens that a rule keeps, answer included, of those that reached a level under that rule."""
        kept, as_recorded = self.kept[level - 1].sum(), self.reached[level - 1].sum()
        return int(kept if reached == as_recorded else round(reached * kept / max(as_recorded, 1)))


def tables_of(
    plan: Sequence[tuple[SelectionRule, int]],
    base: RecordedRun,
    surprisal: np.ndarray,
    occurrences: np.ndarray | None,
    best: Tensor | None,
    seed: int,
) -> Tensor:
    """(R, S, N) values by which rules prefer tokens; zeros for rules that look at a level's tokens to decide."""
    rng = np.random.default_rng(seed)
    tables = np.zeros((len(plan), *base.kept.shape), dtype=np.float32)
    for table, (rule, _) in zip(tables, plan, strict=True):
        if rule == SelectionRule.RECORDED:
            table[:] = base.kept
        elif rule == SelectionRule.RANDOM:
            table[:] = rng.random(table.shape)
        elif rule == SelectionRule.SURPRISAL:
            table[:, : base.length] = np.nan_to_num(surprisal, nan=_FIRST_SURPRISAL)
        elif rule == SelectionRule.RARE:
            assert occurrences is not None
            table[:, : base.length] = -occurrences
        elif rule == SelectionRule.ORACLE:
            assert best is not None
            table[:, : base.length] = best.cpu().numpy()
    return torch.tensor(tables, device=base.hidden_states.device)


class RuleRows:
    """Decides by another rule in every row; all rows keep equally many tokens.

    Args:
        rules: (B,) rule of each row.
        tables: (B, S, N) values of the rows' tables.
        base: the recorded run.
        routers: decides at levels whose selection is not replaced.
    """

    def __init__(
        self, rules: Sequence[tuple[SelectionRule, int]], tables: Tensor, base: RecordedRun, routers: Override
    ) -> None:
        self._rules, self._tables, self._base, self._routers = [rule for rule, _ in rules], tables, base, routers

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Decide which tokens enter a level."""
        base, positions = self._base, tokens.positions
        if level not in base.levels:
            return self._routers(level, router, tokens)
        wanted = base.wanted(level, positions.shape[1])
        answered = base.answered[level - 1].to(positions.device)
        in_answer = positions >= base.length
        values = self._tables[:, level - 1].to(positions.device).gather(1, positions)
        inside = positions.shape[1] - int(base.reached[level - 1, base.length :].sum())
        share = wanted - int(base.kept[level - 1, base.length :].sum())
        for row, rule in enumerate(self._rules):
            if rule == SelectionRule.NORM:
                values[row] = tokens.hidden_states[row].float().norm(dim=-1)
            elif rule in (SelectionRule.EVEN, SelectionRule.ENDS):
                index = torch.arange(positions.shape[1], device=positions.device)
                values[row] = (even_ones if rule == SelectionRule.EVEN else first_and_recent)(
                    index, inside, share
                ).float()
        bound = torch.full((), torch.inf, device=values.device)
        values = torch.where(in_answer, torch.where(answered[positions], bound, -bound), values)
        kept = tokens.highest(values, lambda lengths: torch.full_like(lengths, wanted))
        return Selection.of(tokens, kept, torch.ones_like(values))


def even_ones(index: Tensor, tokens: int, kept: int) -> Tensor:
    """Which of some tokens are kept at even distances, the first one included.

    >>> even_ones(torch.arange(5), 5, 2).tolist()
    [True, False, True, False, False]
    """
    before, after = (-(-(index + further) * kept // max(tokens, 1)) for further in (0, 1))
    return after > before


def first_and_recent(index: Tensor, tokens: int, kept: int) -> Tensor:
    """Which of some tokens are kept if only the first few and the most recent ones are.

    >>> first_and_recent(torch.arange(8), 8, 6).tolist()
    [True, True, True, False, False, True, True, True]
    """
    first = min(FIRST, (kept + 1) // 2)
    return (index < first) | (index >= tokens - (kept - first))
