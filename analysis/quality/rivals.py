"""Is a learned selection better than a simple one? Other rules on the same model and prompt, at the same shares.

Every rule keeps as many tokens of each level as the recorded run did, out of those that reach the level under that
rule. Kept tokens get a weight of 1 under all rules: a router would give a token that it wants to drop a weight near 0,
and then the level's work on it would have no effect. The recorded run is there a second time with its own weights. The
model was trained for its own rule, so a comparison is about this model and this text, and not about rules as such.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from subllm import Probe, Selection, SubllmForCausalLM
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint
from subllm.routing import LevelTokens, Override, Router, routing_arrays

from ..cost.measure import rows_that_fit
from ..debug.edit_override import EditOverride
from ..debug.edits import read_edits
from ..errors import AnalysisError
from ..guard import Progress, ids_on_device, out_of_memory_reported, silent
from ..trace.agreement import agree, agree_each
from ..trace.parts import Prompt, Routing
from ..trace.trace import Trace
from .oracle import MOST_FORWARDS, Steps, search_oracle
from .paired import Interval, paired_interval
from .selection_rules import RecordedRun, RuleRows, SelectionRule, plan_of, tables_of

FEWEST_TOKENS = 33  # of a prompt about which a verdict is given
_CHANCE = 0.05  # that an interval of the verdict misses, all of them together


@dataclass(frozen=True, eq=False)
class RuleRun:
    """The prompt under one rule.

    Attributes:
        rule: that decided.
        draw: number of the draw, from 1, of the random rule; 0 for others.
        own_weights: whether kept tokens have the weights of the recorded run; else 1.
        kept: (S, T) tokens that each level kept.
        surprisal: (T,) nats; NaN at the first token.
        divergence: (T,) KL divergence from the dense model's next-token distribution, nats.
        agrees: (T,) whether the dense model ranks the same next token first.
        answer: log-probability of the answer in nats; NaN without one.
        found: whether each token of the answer is the likeliest; False without one.
    """

    rule: SelectionRule
    draw: int
    own_weights: bool
    kept: np.ndarray
    surprisal: np.ndarray
    divergence: np.ndarray
    agrees: np.ndarray
    answer: float
    found: bool

    @property
    def name(self) -> str:
        """Name in files, such as "random 2" or "recorded, own weights"."""
        draw = f" {self.draw}" if self.draw else ""
        return f"{self.rule}{draw}{', own weights' if self.own_weights else ''}"

    @property
    def loss(self) -> float:
        """Mean surprisal, nats per token; NaN for a prompt of one token."""
        known = self.surprisal[1:]
        return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


@dataclass(frozen=True)
class Row:
    """One line of a table of rules; the draws of the random rule are averaged.

    Attributes:
        rule: that decided.
        own_weights: as in `RuleRun`.
        draws: number of draws.
        loss: mean surprisal, nats per token.
        difference: loss minus that of the recorded selection with weights of 1, with its interval.
        shared: share of the kept tokens, at all levels together, that the recorded selection keeps as well.
        agreement: share of tokens after which the dense model ranks the same next token first.
        divergence: mean KL divergence from the dense model's next-token distributions, nats.
        answer: mean log-probability of the answer, nats; NaN without one.
        found: share of draws that find each token of the answer likeliest.
    """

    rule: SelectionRule
    own_weights: bool
    draws: int
    loss: float
    difference: Interval
    shared: float
    agreement: float
    divergence: float
    answer: float
    found: float


class Outcome(StrEnum):
    """What can be said of the recorded selection."""

    BETTER = "better"  # than every simple rule
    WORSE = "worse"  # than one of them
    OPEN = "open"
    SHORT = "short"  # too few tokens


@dataclass(frozen=True)
class Verdict:
    """Whether the recorded selection is better than the simple rules on this text, all with weights of 1.

    Attributes:
        outcome: what can be said.
        rule: the simple rule that the numbers are about: the best one by mean loss; where nothing can be said, the best
            of those that cannot be told from the recorded selection.
        difference: its loss minus that of the recorded selection, nats per token; above 0, the recorded one is better.
    """

    outcome: Outcome
    rule: SelectionRule
    difference: Interval


@dataclass(frozen=True, eq=False)
class Comparison:
    """One prompt under several rules.

    Attributes:
        prompt: that was read.
        reference: the dense model, as in `Agreement`.
        levels: levels whose selection is replaced; at others the routers decide, changed by the run's edits.
        answer_tokens: number of tokens of the answer.
        dense_surprisal: (T,) of the prompt under the dense model.
        dense_answer: log-probability of the answer under the dense model; NaN without one.
        dense_found: whether the dense model finds each of its tokens likeliest.
        runs: one for each rule and draw; the recorded run with its own weights comes first.
    """

    prompt: Prompt
    reference: str
    levels: tuple[int, ...]
    answer_tokens: int
    dense_surprisal: np.ndarray
    dense_answer: float
    dense_found: bool
    runs: tuple[RuleRun, ...]

    def of(self, rule: SelectionRule, *, own_weights: bool = False) -> list[RuleRun]:
        """The runs of a rule; several draws of the random one."""
        return [run for run in self.runs if run.rule == rule and run.own_weights == own_weights]

    def _difference(self, runs: Sequence[RuleRun]) -> Interval:
        """Loss of runs minus that of the recorded selection with weights of 1, nats per token.

        Each interval misses so seldom that those of all simple rules hold at once, 95 times in 100.
        """
        (recorded,) = self.of(SelectionRule.RECORDED)
        rows = np.stack([run.surprisal[1:] for run in runs]).astype(np.float64)
        chance = _CHANCE / len(self._simple)
        return paired_interval(rows - recorded.surprisal[1:], chance)

    def table(self) -> list[Row]:
        """A line for each rule, by rising loss."""
        (recorded,) = self.of(SelectionRule.RECORDED)
        rows = []
        for rule in SelectionRule:
            for own_weights in (False, True):
                runs = self.of(rule, own_weights=own_weights)
                if runs:
                    both = np.mean([(run.kept & recorded.kept)[self._rows].sum() for run in runs])
                    rows.append(
                        Row(
                            rule,
                            own_weights,
                            len(runs),
                            float(np.mean([run.loss for run in runs])),
                            self._difference(runs),
                            float(both / max(recorded.kept[self._rows].sum(), 1)),
                            float(np.mean([run.agrees.mean() for run in runs])),
                            float(np.mean([run.divergence.mean() for run in runs])),
                            float(np.mean([run.answer for run in runs])),
                            float(np.mean([run.found for run in runs])),
                        )
                    )
        return sorted(rows, key=lambda row: row.loss)

    def tokens(self) -> pd.DataFrame:
        """A line for each token: its surprisal, and the levels that keep it (such as "1 2"), under every rule."""
        columns: dict[str, object] = {
            "token": np.arange(len(self.prompt)),
            "piece": [repr(piece) for piece in self.prompt.pieces.tolist()],  # quoted: no spreadsheet takes it for more
            "surprisal, dense": self.dense_surprisal,
        }
        for run in self.runs:
            columns[f"surprisal, {run.name}"] = run.surprisal
            columns[f"kept, {run.name}"] = [
                " ".join(str(level) for level in self.levels if run.kept[level - 1, token])
                for token in range(len(self.prompt))
            ]
        return pd.DataFrame(columns)

    @property
    def _simple(self) -> list[SelectionRule]:
        """The simple rules that are compared; the one about rare tokens only where their number is known."""
        rare = any(run.rule == SelectionRule.RARE for run in self.runs)
        return [rule for rule in SelectionRule if rule.simple and (rare or rule != SelectionRule.RARE)]

    @property
    def _rows(self) -> list[int]:
        return [level - 1 for level in self.levels]

    def verdict(self) -> Verdict:
        """Whether the recorded selection is better than the simple rules."""
        found = {rule: self._difference(self.of(rule)) for rule in self._simple}
        best = min(found, key=lambda rule: found[rule].mean)
        if len(self.prompt) < FEWEST_TOKENS:
            return Verdict(Outcome.SHORT, best, found[best])
        if all(each.low > 0 for each in found.values()):
            return Verdict(Outcome.BETTER, best, found[best])
        worse = [rule for rule, each in found.items() if each.high < 0]
        if worse:
            best = min(worse, key=lambda rule: found[rule].mean)
            return Verdict(Outcome.WORSE, best, found[best])
        if found[best].low > 0:  # the best one is told apart, but another one varies more
            best = min((rule for rule, each in found.items() if each.low <= 0), key=lambda rule: found[rule].mean)
        return Verdict(Outcome.OPEN, best, found[best])


def replaceable(routing: Routing) -> list[int]:
    """Levels whose selection other rules can replace: their router either keeps a token or drops it.

    A router that merges groups drops nothing, and a part of a light/heavy block weighs all of its tokens.
    """
    bracket = (routing.site_kinds == "level") & ~routing.merges
    return [level for level in routing.levels if bracket[level - 1]]


def passes(trace: Trace) -> int:
    """Number of passes over the prompt that `compare_rules` makes without the oracle."""
    return 2 + len(plan_of(oracle=False)) if replaceable(trace.routing) else 0


def oracle_passes(trace: Trace) -> int:
    """Number of further passes that the oracle needs, one for each token that reaches a level; 0 if they are too many.

    They begin at the level. One more for each level says what to compare with, and the last one is the result.
    """
    reached = trace.routing.reached[[level - 1 for level in replaceable(trace.routing)]]
    needed = int(reached.sum()) + len(reached) + 1
    return needed if len(reached) and needed <= MOST_FORWARDS else 0


@torch.inference_mode()
def compare_rules(
    checkpoint: Checkpoint,
    dense: DenseModel,
    trace: Trace,
    answer_ids: Sequence[int] = (),
    *,
    oracle: bool = False,
    occurrences: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[Comparison]:
    """Run a prompt under the recorded selection and under every other rule.

    The oracle drops each token alone at a level, while the levels inside keep all that reaches them, and keeps those
    whose absence raises the loss most. It reads the whole text before it decides, as no router can.

    Args:
        checkpoint: that made the trace.
        dense: dense model whose surprisal one of the rules uses, and with whose predictions all are compared.
        trace: trace of the prompt; its selection, edits included, is the recorded one.
        answer_ids: (A,) ids that follow the prompt and whose probability is measured. All rules route them alike, as
            the run's routers and edits do after the recorded selection.
        oracle: run the oracle, too.
        occurrences: (T,) how often each token of the prompt occurs in a corpus; with them, a rule keeps the rarest.
        seed: of the random draws.
        progress: receives the progress; may raise to stop.

    Yields:
        The comparison as it grows; the last one is whole.

    Raises:
        AnalysisError: if there is no level whose selection could be replaced, or the prompt is too long for the oracle.
        PromptError: if the model has no embedding for a token of the answer.
        RunStopped: when memory runs out.
    """
    levels = replaceable(trace.routing)
    if not levels:
        raise AnalysisError(
            "This model has no level at which a router keeps or drops tokens, so no other rule can take its place."
        )
    forwards = oracle_passes(trace) if oracle else 0
    if oracle and not forwards:
        raise AnalysisError(
            "The oracle takes a pass for every token that reaches a level, and at most {most} passes are made; shorten "
            "the prompt, or compare the other rules without it.",
            most=MOST_FORWARDS,
        )
    model, length = checkpoint.model, trace.num_tokens
    ids = ids_on_device(model, [*trace.prompt.token_ids.tolist(), *answer_ids])
    plan = plan_of(oracle=oracle, rare=occurrences is not None)
    steps = Steps(progress, passes(trace) + forwards + (occurrences is not None))
    with out_of_memory_reported(ids.shape[1], model):
        routers = EditOverride(read_edits(trace.provenance.edits), trace.prompt)
        base = _base(model, ids, trace.routing, levels, routers, steps)
        reference = dense.model.model(ids, use_cache=False).last_hidden_state
        (dense_answer,), (dense_found,) = _answers(dense.model.lm_head, reference, ids[0, length:])
        surprisal, agreement = agree(
            model.lm_head, base.hidden_states[0, :length], dense.model.lm_head, reference[0, :length], ids[0, :length],
            dense.description,
        )  # fmt: skip
        (answer,), (found,) = _answers(model.lm_head, base.hidden_states, ids[0, length:])
        own = RuleRun(
            SelectionRule.RECORDED, 0, True, base.kept[:, :length], surprisal, agreement.divergence, agreement.agrees,
            answer, found,
        )  # fmt: skip
        comparison = Comparison(
            trace.prompt, dense.description, tuple(levels), len(answer_ids), agreement.surprisal, dense_answer,
            dense_found, (own,),
        )  # fmt: skip
        steps.done()
        yield comparison
        best = None
        for table in search_oracle(model, ids[:, :length], trace.routing, levels, routers, steps) if oracle else ():
            best = table
            yield comparison
        tables = tables_of(plan, base, agreement.surprisal, occurrences, best, seed)
        rows = rows_that_fit(model, ids.shape[1])
        for start in range(0, len(plan), rows):
            part = plan[start : start + rows]
            probe = Probe(
                record=True,
                observe=steps.observe,
                override=RuleRows(part, tables[start : start + rows], base, routers),
                resume=base.snapshot,
            )
            output = model.model(ids.expand(len(part), -1), use_cache=False, probe=probe)
            hidden = output.last_hidden_state
            compared = agree_each(
                model.lm_head, hidden[:, :length], dense.model.lm_head, reference[0, :length], ids[0, :length],
                dense.description,
            )  # fmt: skip
            answers = zip(*_answers(model.lm_head, hidden, ids[0, length:]), strict=True)
            runs = [
                RuleRun(
                    rule, draw, False, routing_arrays(output.routing, length, row)["kept"], surprisal,
                    agreement.divergence, agreement.agrees, answer, found,
                )
                for row, ((rule, draw), (surprisal, agreement), (answer, found)) in enumerate(
                    zip(part, compared, answers, strict=True)
                )
            ]  # fmt: skip
            comparison = replace(comparison, runs=(*comparison.runs, *runs))
            steps.done(len(part))
            yield comparison


def _base(
    model: SubllmForCausalLM, ids: Tensor, routing: Routing, levels: list[int], routers: Override, steps: Steps
) -> RecordedRun:
    length = routing.kept.shape[1]
    recorded_kept = torch.tensor(routing.kept, device=ids.device)
    recorded_weights = torch.tensor(routing.weights, device=ids.device)

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        own = routers(level, router, tokens)
        if level not in levels:
            return own
        inside, places = tokens.positions < length, tokens.positions.clamp(max=length - 1)
        kept = torch.where(inside, recorded_kept[level - 1].to(places.device)[places], own.kept)
        weights = torch.where(inside, recorded_weights[level - 1].to(places.device)[places], own.weights)
        return Selection.of(tokens, kept, weights)

    probe = Probe(record=True, observe=steps.observe, override=decide, keep_snapshots=True)
    output = model.model(ids, use_cache=False, probe=probe)
    steps.done()
    arrays = routing_arrays(output.routing, ids.shape[1])
    answered = arrays["kept"].copy()
    answered[:, :length] = False
    return RecordedRun(
        length,
        arrays["kept"],
        arrays["reached"],
        torch.tensor(answered, device=ids.device),
        levels,
        output.last_hidden_state,
        probe.snapshots[levels[0]],
    )


def _answers(head: torch.nn.Module, hidden: Tensor, answer: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of an answer (A,) at the end of each row, and whether each of its tokens is the likeliest.

    Args:
        head: from hidden states to logits.
        hidden: (B, N, D) last hidden states.
        answer: ids of the last tokens.
    """
    if not len(answer):
        return [float("nan")] * len(hidden), [False] * len(hidden)
    found = head(hidden[:, -len(answer) - 1 : -1]).float().log_softmax(-1)
    targets = answer[None, :, None].expand(len(hidden), -1, 1)
    likely = (found.argmax(-1) == answer).all(1)
    total: list[float] = found.gather(2, targets).sum((1, 2)).tolist()
    right: list[bool] = likely.tolist()
    return total, right
