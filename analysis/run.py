"""A prompt through a checkpoint, recorded as a trace: prefill, continuation, and the comparison with a dense model.

>>> from subllm.assets import ASSETS
>>> from subllm.checkpoints.load import load_checkpoint
>>> trace = record_trace(load_checkpoint(ASSETS / "small" / "final", "cpu", "float32"), "The tide turns.")
>>> for level in trace.routing.levels:
...     print(level, trace.routing.kept[level - 1].sum(), "of", trace.routing.reached[level - 1].sum())
1 3 of 5
2 3 of 3
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from subllm import SubllmCache
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint

from .cost.measure import alternate, peak_bytes, timed
from .cost.operations import head_dim, key_value_heads
from .debug.generation import Generation, NewToken, end_tokens
from .guard import Progress, check_time, out_of_memory_reported, silent
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
    """

    new_tokens: int = 40
    compare: bool = True
    seconds: float = math.inf


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
        PromptError: if the text is empty or cannot be encoded, or has more tokens than the model has positions.
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
) -> Iterator[Trace]:
    """`record_trace` stage by stage, with the same arguments and errors.

    Yields:
        The trace after the prefill; then with the continuation, unless it is empty; then with costs and agreement, if
        they are wanted.
    """
    model = checkpoint.model
    if isinstance(prompt, str):
        prompt = read_prompt(prompt, checkpoint.tokenizer, model.config.max_position_embeddings)
    deadline = time.monotonic() + options.seconds
    ids = torch.tensor(prompt.token_ids, device=model.device)[None]
    with out_of_memory_reported(len(prompt)):
        cache = SubllmCache(model.config)
        read = prefill(model, ids, cache=cache, deadline=deadline, progress=progress)
        logits = model.lm_head(read.hidden_states[-1])
        cache_bytes = cache.used_bytes
        trace = Trace(
            prompt=prompt,
            routing=read.routing,
            provenance=provenance_of(checkpoint, dense, name),
            blocks=read.blocks,
            predictions=predictions_of(logits, checkpoint.tokenizer),
        )
        yield trace
        if options.new_tokens and len(prompt) < model.config.max_position_embeddings:
            text = Generation(model, prompt, prefilled=(cache, logits))
            continuation = _continue(text, checkpoint, options.new_tokens, deadline, progress)
            del text
            if continuation is not None:
                trace = replace(trace, continuation=continuation)
                yield trace
        del cache
        if dense is None or not options.compare:
            return
        costs = _compare(model, dense, ids, cache_bytes, deadline, progress)
        if time.monotonic() < deadline:
            progress(0.9, "predictions")
            reference = dense.model.model(ids, use_cache=False).last_hidden_state[0]
            surprisal, agreement = agree(
                model.lm_head, read.hidden_states, dense.model.lm_head, reference, ids[0], dense.description
            )
            trace = replace(trace, likelihood=Likelihood(surprisal), agreement=agreement)
        yield replace(trace, costs=costs)


def _continue(
    text: Generation, checkpoint: Checkpoint, length: int, deadline: float, progress: Progress
) -> Continuation | None:
    """Greedy continuation up to an end-of-text token, which is left out; None if it is empty."""
    ends = end_tokens(checkpoint.model)
    while len(text.tokens) < length and not text.finished and text.likeliest not in ends:
        check_time(deadline, "after {tokens} new tokens", tokens=len(text.tokens))
        progress(0.4 + 0.2 * len(text.tokens) / length, "continuing", done=len(text.tokens), length=length)
        text.step()
    if not text.tokens:
        return None
    ids = np.asarray([token.id for token in text.tokens], dtype=np.int64)
    return Continuation(
        text=str(checkpoint.tokenizer.decode(ids)),
        ids=ids,
        pieces=decode_pieces(ids, checkpoint.tokenizer),
        reached=_by_level(text.tokens, "reached", np.bool_),
        kept=_by_level(text.tokens, "kept", np.bool_),
        weights=_by_level(text.tokens, "weights", np.float32),
        scores=_by_level(text.tokens, "scores", np.float32),
    )


def _by_level(tokens: list[NewToken], name: str, kind: Any) -> np.ndarray:
    """(S, N) of a field of new tokens; None becomes NaN."""
    return np.asarray([getattr(token, name) for token in tokens], dtype=kind).T


def _compare(
    model: Any, dense: DenseModel, ids: Tensor, cache_bytes: int, deadline: float, progress: Progress
) -> Costs | None:
    """Prefill time and memory of both models, run in turn; None if the time limit leaves no room for it."""

    def read() -> None:
        model(ids, past_key_values=SubllmCache(model.config), logits_to_keep=1)

    def read_dense() -> None:
        dense.model(ids, past_key_values=DynamicCache(config=dense.model.config), logits_to_keep=1)

    device = model.device

    def peak_of(run: Callable[[], None]) -> tuple[int, float]:
        peaks: list[int] = []
        seconds = timed(lambda: peaks.append(peak_bytes(run, device)), device).seconds
        return peaks[0], seconds

    progress(0.6, "memory")
    if time.monotonic() > deadline:
        return None
    peak, once = peak_of(read)
    if time.monotonic() + once > deadline:
        return None
    dense_peak, once = peak_of(read_dense)
    repeats = max(1, min(_MOST_REPEATS, int(_ENOUGH_SECONDS / (2 * once))))
    if time.monotonic() + 2 * repeats * once > deadline:
        return None
    progress(0.8, "timing", repeats=repeats)
    took = alternate({"subllm": read, "dense": read_dense}, repeats, device)
    seconds = {name: tuple(one.seconds for one in each) for name, each in took.items()}
    config = dense.model.config
    per_token = 2 * key_value_heads(config) * head_dim(config) * torch.finfo(dense.model.dtype).bits // 8
    dense_cache = ids.shape[1] * config.num_hidden_layers * per_token
    return Costs(
        Cost(seconds["subllm"], peak, cache_bytes),
        Cost(seconds["dense"], dense_peak, dense_cache),
    )
