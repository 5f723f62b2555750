"""A prompt through a checkpoint, recorded as a trace: prefill, continuation, and the comparison with a dense model.

>>> from subllm.assets import ASSETS
>>> from subllm.checkpoints.load import load_checkpoint
>>> trace = record_trace(load_checkpoint(ASSETS / "small" / "final", "cpu", "float32"), "The tide turns.")
>>> for level in trace.routing.levels:
...     print(level, trace.routing.kept[level - 1].sum(), "of", trace.routing.reached[level - 1].sum())
1 3 of 5
2 2 of 3
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from subllm import Probe, SubllmCache
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.device import dtype_name
from subllm.checkpoints.load import Checkpoint
from subllm.routing import Override

from .cost.measure import alternate, peak_bytes, timed
from .cost.sizes import cache_bytes, without_levels
from .debug.answer import Answered, edits_with_answer
from .debug.edit_override import EditOverride, kinds_of
from .debug.edits import Edit
from .debug.generation import Generation, NewToken, end_tokens
from .debug.rules import Rule
from .guard import Limit, Progress, ids_on_device, out_of_memory_reported, seconds_left, silent
from .trace.agreement import agree
from .trace.parts import Continuation, Cost, Costs, Likelihood, Prompt
from .trace.prefill import predictions_of, prefill, provenance_of
from .trace.tokenize import decode_pieces, read_prompt
from .trace.trace import Trace

_ENOUGH_SECONDS = 4.0  # timed passes are repeated for about this long, so that short prompts get a steady median
_MOST_REPEATS = 15


@dataclass(frozen=True)
class RunOptions:
    """What is recorded beyond the prefill.

    Attributes:
        new_tokens: length of the greedy continuation; it ends early at an end-of-text token.
        compare: measure time, memory and predictions against the dense model, if one is given.
        seconds: time limit of the whole run.
        rule: edits to the routing, of the prompt and of what follows; None for the model's own.
    """

    new_tokens: int = 40
    compare: bool = True
    seconds: float = math.inf
    rule: Rule | None = None


def record_trace(
    checkpoint: Checkpoint,
    prompt: Prompt | str,
    options: RunOptions = RunOptions(),
    *,
    dense: DenseModel | None = None,
    name: str = "",
    progress: Progress = silent,
) -> Trace:
    """Run a prompt through a checkpoint, and record what every level kept, what it added, and what comes next.

    Args:
        checkpoint: a loaded checkpoint (`subllm.checkpoints.load.load_checkpoint`).
        prompt: text, or a prompt that `analysis.trace.tokenize.read_prompt` made of it (chats, truncation).
        options: what is recorded beyond the prefill.
        dense: a dense model to compare with, on the same device and in the same dtype (`load_dense`).
        name: display name of the checkpoint; the name of its folder by default.
        progress: receives the progress of the run.

    Raises:
        PromptError: if the text is empty or cannot be encoded, or has more tokens than the model has positions, or a
            token that the model has no embedding for.
        AnalysisError: if the rule does not fit the model.
        RunStopped: at the time limit, or when memory runs out.
    """
    *_, trace = trace_stages(checkpoint, prompt, options, dense=dense, name=name, progress=progress)
    return trace


@torch.inference_mode()
def trace_stages(
    checkpoint: Checkpoint,
    prompt: Prompt | str,
    options: RunOptions = RunOptions(),
    *,
    dense: DenseModel | None = None,
    name: str = "",
    progress: Progress = silent,
    so_far: Callable[[Trace], object] | None = None,
) -> Iterator[Trace]:
    """`record_trace` stage by stage, with the same arguments and errors.

    `so_far` receives the trace with the continuation so far, after every new token: what stops the run loses none.

    Yields:
        The trace after the prefill; then with the continuation, unless it is empty; then with costs and agreement, if
        they are wanted.
    """
    model = checkpoint.model
    if isinstance(prompt, str):
        prompt = read_prompt(prompt, checkpoint.tokenizer, model.config.max_position_embeddings)
    progress = Limit(progress, options.seconds)
    ids = ids_on_device(model, prompt.token_ids)
    edits = () if options.rule is None else options.rule.on(prompt, kinds_of(model))
    override = EditOverride(edits, prompt) if edits else None
    where = provenance_of(checkpoint, dense, name)
    if options.rule is not None:
        where = replace(where, edits=tuple(map(str, edits)), rule=options.rule.name)
    with out_of_memory_reported(len(prompt), model):
        cache = SubllmCache(model.config)
        read = prefill(model, ids, cache=cache, probe=Probe(override=override), progress=progress)
        logits = model.lm_head(read.hidden_states[-1])
        cache_bytes = cache.used_bytes
        trace = Trace(
            prompt=prompt,
            routing=read.routing,
            provenance=where,
            blocks=read.blocks,
            predictions=predictions_of(logits, checkpoint.tokenizer),
        )
        yield trace
        if options.new_tokens and len(prompt) < model.config.max_position_embeddings:
            text = Generation(model, prompt, edits=edits, prefilled=(cache, logits, override))
            for _ in _continue(text, options.new_tokens, progress):
                if so_far is not None:
                    so_far(replace(trace, continuation=_continuation(text.tokens, checkpoint)))
            continuation = _continuation(text.tokens, checkpoint) if text.tokens else None
            del text
            if continuation is not None:
                trace = replace(trace, continuation=continuation)
                yield trace
        del cache
        if dense is None or not options.compare:
            return
        costs = _compare(model, dense, ids, override, cache_bytes, progress)
        if seconds_left(progress) > 0:
            progress(0.9, "predictions")
            reference = dense.model.model(ids, use_cache=False).last_hidden_state[0]
            surprisal, agreement = agree(
                model.lm_head, read.hidden_states, dense.model.lm_head, reference, ids[0], dense.description
            )
            trace = replace(trace, likelihood=Likelihood(surprisal), agreement=agreement)
        yield replace(trace, costs=costs)


def answer_stages(
    checkpoint: Checkpoint,
    prompt: Prompt,
    answered: Answered,
    edits: Sequence[Edit] = (),
    *,
    rule: str = "",
    dense: DenseModel | None = None,
    name: str = "",
    progress: Progress = silent,
) -> Iterator[Trace]:
    """Run a prompt and its answer, with the edits that the answer was generated under.

    Args:
        checkpoint: a loaded checkpoint.
        prompt: the prompt alone.
        answered: of `analysis.debug.answer.with_answer`.
        edits: to the routing of the prompt.
        rule: name of the rule that these edits come from; "" if a person made them.
        dense: a dense model to compare with.
        name: display name of the checkpoint.
        progress: receives the progress of the run.

    Yields:
        As `trace_stages`; `Provenance.answer_from` says where the answer begins.

    Raises:
        AnalysisError: if the edits do not fit the model.
        RunStopped: at the time limit, or when memory runs out.
    """
    edits = edits_with_answer(edits, prompt, len(answered.prompt))
    options = RunOptions(0, dense is not None, rule=Rule(rule, "", tuple(edits)) if edits else None)
    for found in trace_stages(checkpoint, answered.prompt, options, dense=dense, name=name, progress=progress):
        yield replace(found, provenance=replace(found.provenance, answer_from=len(prompt)))


def _continue(text: Generation, length: int, progress: Progress) -> Iterator[NewToken]:
    """Greedy continuation, token by token, up to an end-of-text token, which is left out."""
    ends = end_tokens(text.model)
    while len(text.tokens) < length and not text.finished and text.likeliest not in ends:
        progress(0.4 + 0.2 * len(text.tokens) / length, "continuing", done=len(text.tokens), length=length)
        yield text.step()


def _continuation(tokens: list[NewToken], checkpoint: Checkpoint) -> Continuation:
    ids = np.asarray([token.id for token in tokens], dtype=np.int64)
    return Continuation(
        text=str(checkpoint.tokenizer.decode(ids)),
        ids=ids,
        pieces=decode_pieces(ids, checkpoint.tokenizer),
        reached=_by_level(tokens, "reached", np.bool_),
        kept=_by_level(tokens, "kept", np.bool_),
        weights=_by_level(tokens, "weights", np.float32),
        scores=_by_level(tokens, "scores", np.float32),
    )


def _by_level(tokens: list[NewToken], name: str, kind: Any) -> np.ndarray:
    """(S, N) of a field of new tokens; None becomes NaN."""
    return np.asarray([getattr(token, name) for token in tokens], dtype=kind).T


def _compare(
    model: Any, dense: DenseModel, ids: Tensor, override: Override | None, own_cache: int, progress: Progress
) -> Costs | None:
    """Prefill time and memory of both models, run in turn; None if the time limit leaves no room for it."""

    def read() -> None:
        model(ids, past_key_values=SubllmCache(model.config), logits_to_keep=1, probe=Probe(override=override))

    def read_dense() -> None:
        dense.model(ids, past_key_values=DynamicCache(config=dense.model.config), logits_to_keep=1)

    device = model.device

    def peak_of(run: Callable[[], None]) -> tuple[int, float]:
        peaks: list[int] = []
        seconds = timed(lambda: peaks.append(peak_bytes(run, device)), device).seconds
        return peaks[0], seconds

    if seconds_left(progress) < 0:
        return None
    progress(0.6, "memory")
    peak, once = peak_of(read)
    if once > seconds_left(progress):
        return None
    dense_peak, once = peak_of(read_dense)
    repeats = max(1, min(_MOST_REPEATS, int(_ENOUGH_SECONDS / (2 * once))))
    if 2 * repeats * once > seconds_left(progress):
        return None

    def before(done: int) -> None:
        progress(0.8 + 0.1 * done / (2 * repeats), "timing", repeats=repeats)

    took = alternate({"subllm": read, "dense": read_dense}, repeats, device, before)
    seconds = {name: tuple(one.seconds for one in each) for name, each in took.items()}
    dense_cache = int(cache_bytes(without_levels(dense.model.config), [ids.shape[1]], dtype=dtype_name(dense.model)))
    return Costs(
        Cost(seconds["subllm"], peak, own_cache),
        Cost(seconds["dense"], dense_peak, dense_cache),
    )
