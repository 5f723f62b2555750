"""What would have happened otherwise: edits to the routing of a prompt, and what they change.

A prompt is read once, untouched, and every edit goes on from the state just before the first level that it names: what
comes before is not run again. Without edits the result is the untouched one, bit for bit.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from subllm import Probe, SubllmForCausalLM
from subllm.checkpoints.load import Checkpoint, dtype_name
from subllm.structure import BLOCK

from ..cost.measure import timed
from ..cost.operations import prefill_operations
from ..cost.roofline import cache_bytes
from ..guard import out_of_memory_said
from ..trace.agreement import agree, divergence_of
from ..trace.parts import UNTOUCHED, Likelihood, Prompt, Routing
from ..trace.prefill import NEXT_TOKENS, Prefill, predictions_of, prefill, provenance_of
from ..trace.tokenize import decode_pieces
from ..trace.trace import Trace
from .edit_override import EditOverride
from .edits import Edit, EditKind, check
from .named_tokens import ranges


@dataclass(frozen=True, eq=False)
class Ground:
    """A prompt read without edits: what edits are compared with, and where they go on from.

    Attributes:
        checkpoint: that reads.
        ids: (1, T + A): the prompt, and the answer whose probability is watched.
        trace: of the prompt, untouched: prompt, routing, blocks, predictions.
        prefill: the same pass; its `hidden_states` are (T + A, D), its snapshots where edits go on from.
        seconds: that reading took.
    """

    checkpoint: Checkpoint
    ids: Tensor
    trace: Trace
    prefill: Prefill
    seconds: float

    @property
    def model(self) -> SubllmForCausalLM:
        """In evaluation mode."""
        return self.checkpoint.model

    @property
    def answer(self) -> int:
        """A, tokens of the answer."""
        return self.ids.shape[1] - self.num_tokens

    @property
    def num_tokens(self) -> int:
        """T, tokens of the prompt."""
        return self.trace.num_tokens


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prompt read with edits, and what they changed; pairs are untouched and edited.

    Attributes:
        edits: in force.
        untouched: trace of the run without edits.
        trace: of the edited run; at first without likelihood and agreement, whose reference is the untouched run.
        flipped: (S, T) 1 where a token that no edit names is kept now and was not, -1 where it is not and was.
        absent: (level, token) that an edit names but that an outer level dropped.
        next_ids: (K,) likeliest next tokens of both.
        next_pieces: (K,) readable text of these.
        next_probabilities: (2, K).
        answer: log-probability of the answer, nats, both; None where none is watched.
        divergence: nats, KL divergence of the edited next-token distribution after the prompt from the untouched one.
        cache_bytes: keys and values of the prompt, both.
        operations: of reading the prompt, both, in full.
        seconds: that the steps from the first edit on took.
        whole_seconds: that the untouched reading took.
        share: of the untouched reading's operations that lie in these steps.
    """

    edits: tuple[Edit, ...]
    untouched: Trace
    trace: Trace
    flipped: np.ndarray
    absent: list[tuple[int, int]]
    next_ids: np.ndarray
    next_pieces: np.ndarray
    next_probabilities: np.ndarray
    answer: tuple[float, float] | None
    divergence: float
    cache_bytes: tuple[float, float]
    operations: tuple[int, int]
    seconds: float
    whole_seconds: float
    share: float

    @property
    def emptied(self) -> list[int]:
        """Levels that keep nothing now."""
        return [level for level in self.trace.routing.levels if not self.trace.routing.kept[level - 1].any()]


@torch.no_grad()  # unlike inference mode, this lets gradients go on from its snapshots
def read_ground(checkpoint: Checkpoint, prompt: Prompt, answer_ids: Sequence[int] = (), name: str = "") -> Ground:
    """Read a prompt without edits.

    Args:
        checkpoint: loaded.
        prompt: tokenised.
        answer_ids: (A,) what may follow it.
        name: of the checkpoint, for traces.

    Raises:
        RunStopped: when memory runs out.
    """
    model = checkpoint.model
    ids = torch.tensor([[*prompt.token_ids.tolist(), *answer_ids]], device=model.device)
    started = time.perf_counter()
    with out_of_memory_said(ids.shape[1]):
        reading = prefill(model, ids, length=len(prompt), probe=Probe(keep_snapshots=True))
    reading.hidden_states.sum().item()  # wait for the device
    seconds = time.perf_counter() - started
    trace = Trace(
        prompt=prompt,
        routing=reading.routing,
        provenance=provenance_of(checkpoint, None, name),
        blocks=reading.blocks,
        predictions=predictions_of(model.lm_head(reading.hidden_states[len(prompt) - 1]), checkpoint.tokenizer),
    )
    return Ground(checkpoint, ids, trace, reading, seconds)


@torch.inference_mode()
def stages(ground: Ground, edits: Sequence[Edit]) -> Iterator[Outcome]:
    """Read a prompt with edits, from the first level that they name on.

    Args:
        ground: the prompt without edits.
        edits: to be made, in order.

    Yields:
        The outcome; then again with surprisal and agreement at every position, a head's work per token for each.

    Raises:
        AnalysisError: if an edit does not fit the model or the prompt.
        RunStopped: when memory runs out.
    """
    model, prompt, length = ground.model, ground.trace.prompt, ground.num_tokens
    check(edits, [router.scores_tokens for router in model.model.subsamplers], prompt)  # type: ignore[misc]
    reading, seconds, share = ground.prefill, 0.0, 0.0
    if edits and ground.trace.routing.num_levels:
        first = first_level(edits)
        probe = Probe(override=EditOverride(tuple(edits), prompt), resume=ground.prefill.snapshots[first])
        found: list[Prefill] = []

        def run() -> None:
            found.append(prefill(model, ground.ids, length=length, probe=probe, known=ground.prefill))

        with out_of_memory_said(length):
            seconds = timed(run, model.device).seconds
        (reading,) = found
        share = _share_again(ground, first)
    outcome = _outcome(ground, tuple(edits), reading, seconds, share)
    yield outcome
    head = model.lm_head
    before, after = ground.prefill.hidden_states[:length], reading.hidden_states[:length]
    surprisal, agreement = agree(head, after, head, before, ground.ids[0, :length], UNTOUCHED)
    trace = replace(outcome.trace, likelihood=Likelihood(surprisal), agreement=agreement if edits else None)
    yield replace(outcome, trace=trace)


def intervene(ground: Ground, edits: Sequence[Edit]) -> Outcome:
    """The last of `stages`, which has the arguments and errors."""
    *_, outcome = stages(ground, edits)
    return outcome


def _outcome(ground: Ground, edits: tuple[Edit, ...], reading: Prefill, seconds: float, share: float) -> Outcome:
    model, prompt, length = ground.model, ground.trace.prompt, ground.num_tokens
    before, after = (_last(model, each.hidden_states, length) for each in (ground.prefill, reading))
    top = torch.cat([each.topk(min(NEXT_TOKENS, len(each))).indices for each in (before, after)])
    next_ids = torch.tensor(list(dict.fromkeys(top.tolist())), device=top.device)
    next_ids = next_ids[after[next_ids].argsort(descending=True)]
    untouched, routing = ground.trace.routing, reading.routing
    trace = replace(
        ground.trace,
        routing=routing,
        blocks=reading.blocks,
        predictions=predictions_of(after, ground.checkpoint.tokenizer) if edits else ground.trace.predictions,
        provenance=replace(ground.trace.provenance, edits=tuple(map(str, edits))),
    )
    sizes = [_size(ground, each) for each in (untouched, routing)]
    absent = {
        (edit.level, token)
        for edit in edits
        if edit.level is not None
        for token in edit.named(prompt)
        if not routing.reached[edit.level - 1, token]
    }
    answers = (answer_logprob(ground, ground.prefill.hidden_states), answer_logprob(ground, reading.hidden_states))
    return Outcome(
        edits=edits,
        untouched=ground.trace,
        trace=trace,
        flipped=np.where(routing.edited, 0, routing.kept.astype(np.int8) - untouched.kept.astype(np.int8)),
        absent=sorted(absent),
        next_ids=next_ids.cpu().numpy(),
        next_pieces=decode_pieces(next_ids.cpu().numpy(), ground.checkpoint.tokenizer),
        next_probabilities=torch.stack([before[next_ids], after[next_ids]]).exp().cpu().numpy(),
        answer=answers if ground.answer else None,
        divergence=max(divergence_of(after, before).item(), 0.0),
        cache_bytes=(sizes[0][0], sizes[1][0]),
        operations=(sizes[0][1], sizes[1][1]),
        seconds=seconds,
        whole_seconds=ground.seconds,
        share=share,
    )


def reachable(edits: Sequence[Edit], absent: Sequence[tuple[int, int]], parents: Sequence[int]) -> list[Edit]:
    """The edits, with those added that keep tokens in the outer levels that drop them now.

    Args:
        edits: in force.
        absent: (level, token) as in `Outcome`.
        parents: enclosing level of each level, from Level 1 on.
    """
    added: dict[int, set[int]] = {}
    for level, token in absent:
        outer = parents[level - 1]
        while outer:
            added.setdefault(outer, set()).add(token)
            outer = parents[outer - 1]
    return [*(Edit(EditKind.KEEP, level, ranges(sorted(tokens))) for level, tokens in added.items()), *edits]


def first_level(edits: Sequence[Edit]) -> int:
    """The level that opens first among those that edits name.

    Args:
        edits: at least one.
    """
    return min(edit.level or 1 for edit in edits)  # levels are numbered in order of opening


def answer_logprob(ground: Ground, hidden: Tensor) -> float:
    """Log-probability of the answer after the prompt, in nats; NaN without one.

    Args:
        ground: the prompt and its answer.
        hidden: (T + A, D) last hidden states.
    """
    return objective(ground, hidden[None]).item() if ground.answer else float("nan")


def objective(ground: Ground, hidden: Tensor) -> Tensor:
    """(B,) log-probability of the answer, or without one of the token that is likeliest untouched.

    Args:
        ground: the prompt and its answer.
        hidden: (B, T + A, D) last hidden states.
    """
    head, last = ground.model.lm_head, ground.num_tokens - 1
    untouched = ground.prefill.hidden_states[last]
    targets = ground.ids[0, ground.num_tokens :] if ground.answer else head(untouched).argmax()[None]
    rows = hidden[:, last : last + len(targets)]
    found = head(rows).float().log_softmax(-1)
    return found.gather(2, targets[None, :, None].expand(len(hidden), -1, 1)).sum((1, 2))


def _last(model: SubllmForCausalLM, hidden: Tensor, length: int) -> Tensor:
    """(V,) log-probabilities after the prompt."""
    return model.lm_head(hidden[length - 1]).float().log_softmax(-1)


def _size(ground: Ground, routing: Routing) -> tuple[float, int]:
    """Cache bytes and operations of a prompt, from what was kept."""
    config = ground.model.config
    size = cache_bytes(config, routing.level_tokens.tolist(), 1, dtype_name(ground.model))
    return size, prefill_operations(config, routing.block_tokens.tolist())


def _share_again(ground: Ground, level: int) -> float:
    config, tokens = ground.model.config, ground.trace.routing.block_tokens.tolist()
    done = config.parsed_structure.text[: ground.prefill.snapshots[level].step].count(BLOCK)
    return prefill_operations(config, [0] * done + tokens[done:]) / prefill_operations(config, tokens)
