"""Edits to the routing of a prompt, and what they change.

A prompt is run once without edits. A run with edits resumes from the state just before the first level that they name,
so that earlier blocks are not run again. Without edits the result equals the unedited run bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from subllm import Probe, SubllmForCausalLM
from subllm.checkpoints.device import dtype_name
from subllm.checkpoints.load import Checkpoint
from subllm.model.divergence import divergence_of
from subllm.structure import BLOCK, LIGHT_HEAVY

from ..cost.measure import timed
from ..cost.operations import block_operations, prefill_operations
from ..cost.sizes import cache_bytes
from ..guard import Progress, ids_on_device, out_of_memory_reported, silent
from ..trace.agreement import agree
from ..trace.parts import UNTOUCHED, Likelihood, Prompt, Routing
from ..trace.prefill import NEXT_TOKENS, Prefill, predictions_of, prefill, provenance_of
from ..trace.tokenize import decode_pieces
from ..trace.trace import Trace
from .edit_override import EditOverride, kinds_of
from .edits import Edit, EditKind, check
from .named_tokens import ranges


@dataclass(frozen=True, eq=False)
class UneditedRun:
    """A prompt run without edits, to compare edited runs with and to resume them from.

    Attributes:
        checkpoint: the checkpoint that was run.
        ids: (1, T + A) the prompt, and the answer whose probability is measured.
        trace: trace of the run, with routing, blocks and predictions.
        prefill: the pass itself; its `hidden_states` are (T + A, D), its snapshots the states to resume from.
        seconds: run time.
    """

    checkpoint: Checkpoint
    ids: Tensor
    trace: Trace
    prefill: Prefill
    seconds: float

    @property
    def model(self) -> SubllmForCausalLM:
        """The checkpoint's model, in evaluation mode."""
        return self.checkpoint.model

    @property
    def answer_tokens(self) -> int:
        """A, the number of tokens of the answer."""
        return self.ids.shape[1] - self.num_tokens

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of the prompt."""
        return self.trace.num_tokens


@dataclass(frozen=True)
class Change:
    """One number in the unedited and in the edited run."""

    unedited: float
    edited: float

    @property
    def ratio(self) -> float:
        """Edited over unedited."""
        return self.edited / self.unedited


class LevelToken(NamedTuple):
    """A token of the prompt at a level, which counts from 1."""

    level: int
    token: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prompt run with edits, and what they changed.

    Attributes:
        edits: the edits in force.
        unedited: trace of the run without edits.
        trace: trace of the edited run. Likelihood and agreement are added last; the reference is the unedited run.
        flipped: (S, T) 1 where the edits made a level keep a token that they do not name, -1 where they made it drop
            one, 0 elsewhere.
        absent: tokens that an edit names at a level that they do not reach, because an outer level drops or merges
            them.
        next_ids: (K,) ids of the likeliest next tokens of both runs.
        next_pieces: (K,) readable text of each.
        next_probabilities: (2, K) their probabilities without and with edits.
        answer: log-probability of the answer, nats; None without an answer.
        divergence: KL divergence of the edited next-token distribution after the prompt from the unedited one, nats.
        cache_bytes: size of the keys and values of the prompt.
        operations: multiplications and additions of a whole prefill.
        seconds: run time from the first edit on.
        whole_seconds: run time of the unedited prefill.
        share: share of the unedited prefill's operations that were run again.
    """

    edits: tuple[Edit, ...]
    unedited: Trace
    trace: Trace
    flipped: np.ndarray
    absent: list[LevelToken]
    next_ids: np.ndarray
    next_pieces: np.ndarray
    next_probabilities: np.ndarray
    answer: Change | None
    divergence: float
    cache_bytes: Change
    operations: Change
    seconds: float
    whole_seconds: float
    share: float

    @property
    def emptied(self) -> list[int]:
        """Levels that keep no token in the edited run."""
        return [level for level in self.trace.routing.levels if not self.trace.routing.kept[level - 1].any()]


@torch.no_grad()  # unlike in inference mode, gradients can be taken from its snapshots on
def run_unedited(
    checkpoint: Checkpoint,
    prompt: Prompt,
    answer_ids: Sequence[int] = (),
    name: str = "",
    progress: Progress = silent,
    answer_from: int = 0,
) -> UneditedRun:
    """Run a prompt without edits.

    Args:
        checkpoint: a loaded checkpoint.
        prompt: the tokenised prompt.
        answer_ids: (A,) ids of an answer after the prompt whose probability is measured.
        name: display name of the checkpoint, for traces.
        progress: receives the progress, after every step; may raise to stop.
        answer_from: first token of the prompt that the model wrote itself, as in `Provenance`.

    Raises:
        PromptError: if the model has no embedding for a token.
        RunStopped: when memory runs out.
    """
    model = checkpoint.model
    ids = ids_on_device(model, [*prompt.token_ids.tolist(), *answer_ids])
    found: list[Prefill] = []

    def run() -> None:
        found.append(prefill(model, ids, length=len(prompt), probe=Probe(keep_snapshots=True), progress=progress))

    with out_of_memory_reported(ids.shape[1], model):
        seconds = timed(run, model.device).seconds
        (whole,) = found
        predictions = predictions_of(model.lm_head(whole.hidden_states[len(prompt) - 1]), checkpoint.tokenizer)
    trace = Trace(
        prompt=prompt,
        routing=whole.routing,
        provenance=replace(provenance_of(checkpoint, None, name), answer_from=answer_from),
        blocks=whole.blocks,
        predictions=predictions,
    )
    return UneditedRun(checkpoint, ids, trace, whole, seconds)


@torch.inference_mode()
def stages(unedited: UneditedRun, edits: Sequence[Edit], progress: Progress = silent) -> Iterator[Outcome]:
    """Run a prompt with edits, from the first level that they name on.

    Args:
        unedited: the run without edits.
        edits: edits to make, in order.
        progress: receives the progress; may raise to stop.

    Yields:
        The outcome; then again with surprisal and agreement at every position, which take a head's work per token.

    Raises:
        AnalysisError: if an edit does not fit the model or the prompt.
        RunStopped: when memory runs out.
    """
    model, prompt, length = unedited.model, unedited.trace.prompt, unedited.num_tokens
    check(edits, kinds_of(model), prompt)
    edited, seconds, share = unedited.prefill, 0.0, 0.0
    if edits and unedited.trace.routing.num_levels:
        first = first_level(edits)
        probe = Probe(override=EditOverride(tuple(edits), prompt), resume=unedited.prefill.snapshots[first])
        found: list[Prefill] = []

        def run() -> None:
            found.append(
                prefill(model, unedited.ids, length=length, probe=probe, known=unedited.prefill, progress=progress)
            )

        with out_of_memory_reported(length, model):
            seconds = timed(run, model.device).seconds
        (edited,) = found
        share = _share_again(unedited, first)
    with out_of_memory_reported(length, model):
        outcome = _outcome(unedited, tuple(edits), edited, seconds, share)
    yield outcome
    progress(0.9, "predictions")
    head = model.lm_head
    before, after = unedited.prefill.hidden_states[:length], edited.hidden_states[:length]
    with out_of_memory_reported(length, model):
        surprisal, agreement = agree(head, after, head, before, unedited.ids[0, :length], UNTOUCHED)
    trace = replace(outcome.trace, likelihood=Likelihood(surprisal), agreement=agreement if edits else None)
    yield replace(outcome, trace=trace)


def intervene(unedited: UneditedRun, edits: Sequence[Edit]) -> Outcome:
    """Run a prompt with edits: the last outcome of `stages`, which documents arguments and errors."""
    *_, outcome = stages(unedited, edits)
    return outcome


def _outcome(unedited: UneditedRun, edits: tuple[Edit, ...], edited: Prefill, seconds: float, share: float) -> Outcome:
    model, prompt, length = unedited.model, unedited.trace.prompt, unedited.num_tokens
    before, after = (_last(model, each.hidden_states, length) for each in (unedited.prefill, edited))
    top = torch.cat([each.topk(min(NEXT_TOKENS, len(each))).indices for each in (before, after)])
    next_ids = torch.tensor(list(dict.fromkeys(top.tolist())), device=top.device)
    next_ids = next_ids[after[next_ids].argsort(descending=True)]
    routing_before, routing = unedited.trace.routing, edited.routing
    trace = replace(
        unedited.trace,
        routing=routing,
        blocks=edited.blocks,
        predictions=predictions_of(after, unedited.checkpoint.tokenizer) if edits else unedited.trace.predictions,
        provenance=replace(unedited.trace.provenance, edits=tuple(map(str, edits))),
    )
    cache, operations = zip(*(_size(unedited, each) for each in (routing_before, routing)), strict=True)
    absent = {
        LevelToken(edit.level, token)
        for edit in edits
        if edit.level is not None
        for token in edit.named(prompt)
        if not routing.reached[edit.level - 1, token]
    }
    return Outcome(
        edits=edits,
        unedited=unedited.trace,
        trace=trace,
        flipped=np.where(routing.edited, 0, routing.kept.astype(np.int8) - routing_before.kept.astype(np.int8)),
        absent=sorted(absent),
        next_ids=next_ids.cpu().numpy(),
        next_pieces=decode_pieces(next_ids.cpu().numpy(), unedited.checkpoint.tokenizer),
        next_probabilities=torch.stack([before[next_ids], after[next_ids]]).exp().cpu().numpy(),
        answer=Change(*(answer_logprob(unedited, each.hidden_states) for each in (unedited.prefill, edited)))
        if unedited.answer_tokens
        else None,
        divergence=max(divergence_of(after, before).item(), 0.0),
        cache_bytes=Change(*cache),
        operations=Change(*operations),
        seconds=seconds,
        whole_seconds=unedited.seconds,
        share=share,
    )


def reachable(edits: Sequence[Edit], absent: Sequence[LevelToken], routing: Routing) -> list[Edit]:
    """The edits, after others that keep the absent tokens in the outer levels where that is possible.

    A token that an outer level merges cannot be brought further; where all are such, the edits stay as they are.

    Args:
        edits: the edits in force.
        absent: absent tokens, as in `Outcome`.
        routing: what became of them under the edits.
    """
    added: dict[int, set[int]] = {}
    for level, token in absent:
        around = []
        while level := int(routing.parents[level - 1]):
            around.append(level)
        if any(routing.dropped[outer - 1, token] for outer in around):
            for outer in around:
                if not routing.merges[outer - 1]:
                    added.setdefault(outer, set()).add(token)
    return [*(Edit(EditKind.KEEP, level, ranges(sorted(tokens))) for level, tokens in added.items()), *edits]


def first_level(edits: Sequence[Edit]) -> int:
    """The level that opens first among those that the edits are for; there is at least one edit."""
    return min(edit.level or 1 for edit in edits)  # levels are numbered in order of opening


def answer_logprob(unedited: UneditedRun, hidden: Tensor) -> float:
    """Log-probability of the answer after the prompt, from last hidden states (T + A, D); NaN without an answer."""
    return objective(unedited, hidden[None]).item() if unedited.answer_tokens else float("nan")


def objective(unedited: UneditedRun, hidden: Tensor) -> Tensor:
    """(B,) log-probability of the answer, from last hidden states (B, T + A, D), in nats.

    Without an answer it is that of the token that is likeliest in the unedited run.
    """
    head, last = unedited.model.lm_head, unedited.num_tokens - 1
    likeliest = unedited.prefill.hidden_states[last]
    targets = unedited.ids[0, unedited.num_tokens :] if unedited.answer_tokens else head(likeliest).argmax()[None]
    rows = hidden[:, last : last + len(targets)]
    found = head(rows).float().log_softmax(-1)
    return found.gather(2, targets[None, :, None].expand(len(hidden), -1, 1)).sum((1, 2))


def _last(model: SubllmForCausalLM, hidden: Tensor, length: int) -> Tensor:
    """(V,) log-probabilities of the next token after the prompt."""
    return model.lm_head(hidden[length - 1]).float().log_softmax(-1)


def _size(unedited: UneditedRun, routing: Routing) -> tuple[float, float]:
    """Cache bytes and operations of the prompt with this routing."""
    config = unedited.model.config
    size = cache_bytes(config, routing.level_tokens.tolist(), 1, dtype_name(unedited.model))
    return size, prefill_operations(config, routing.level_tokens.tolist())


def _share_again(unedited: UneditedRun, level: int) -> float:
    """Share of the unedited run's operations that lie behind the snapshot of a level."""
    config, levels = unedited.model.config, unedited.trace.routing.level_tokens.tolist()
    steps = config.parsed_structure.steps[: unedited.prefill.snapshots[level].step]
    done = sum(step.symbol in (BLOCK, LIGHT_HEAVY) for step in steps)
    whole = prefill_operations(config, levels)
    return 1 - sum(block_operations(config, levels)[:done]) / whole
