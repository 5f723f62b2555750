"""One prompt through the full model, recorded as a trace."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from subllm import RoutingRecord, StreamState, SubllmCache, SubllmForCausalLM
from subllm.checkpoints import Checkpoint, DenseModel, dtype_name
from subllm.routing import level_arrays
from subllm.structure import BLOCK

from .agreement import agreement, empty_agreement
from .errors import RunStopped
from .measure import alternate, device_name, peak_bytes, timed
from .operations import head_dim, key_value_heads
from .prompt import Prompt, decode_pieces
from .trace import Cost, Provenance, Trace


class Progress(Protocol):
    """Told what a run is doing."""

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """Take note.

        Args:
            share: done, 0 to 1.
            stage: "reading", "continuing", "memory", "timing", "predictions" or "lens".
            **values: numbers that say how far the stage is, by name.
        """


def silent(share: float, stage: str, **values: object) -> None:
    """Progress that nobody looks at."""


NEXT_TOKENS = 10
_ENOUGH_SECONDS = 4.0  # repeat timed passes until about this long, so that short prompts get a steady median
_MOST_REPEATS = 15


@dataclass(frozen=True)
class RunOptions:
    """What to do with a prompt besides reading it.

    Attributes:
        new_tokens: length of the greedy continuation; it ends early at the end-of-text token.
        compare: measure time, memory and predictions against the dense model.
        seconds: time limit of the whole run.
    """

    new_tokens: int = 40
    compare: bool = True
    seconds: float = math.inf


def record_trace(
    checkpoint: Checkpoint,
    dense: DenseModel | None,
    prompt: Prompt,
    options: RunOptions = RunOptions(),
    *,
    name: str = "",
    progress: Progress = silent,
) -> Trace:
    """Run a prompt through a checkpoint: the last of `trace_stages`, which has the arguments and errors."""
    *_, trace = trace_stages(checkpoint, dense, prompt, options, name=name, progress=progress)
    return trace


@torch.inference_mode()
def trace_stages(
    checkpoint: Checkpoint,
    dense: DenseModel | None,
    prompt: Prompt,
    options: RunOptions = RunOptions(),
    *,
    name: str = "",
    progress: Progress = silent,
) -> Iterator[Trace]:
    """Run a prompt through a checkpoint, and show what is known as soon as it is.

    Args:
        checkpoint: loaded.
        dense: what to compare with, on the same device, in the same dtype; None to measure nothing.
        prompt: tokenised.
        options: what else to do.
        name: of the checkpoint, for the trace.
        progress: told what is being done.

    Yields:
        The trace once the prompt is read; then with the continuation, if there is any; then with costs and agreement,
        if they are wanted.

    Raises:
        RunStopped: at the time limit, or when memory runs out.
    """
    model = checkpoint.model
    deadline = time.monotonic() + options.seconds
    ids = torch.tensor(prompt.token_ids, device=model.device)[None]
    with out_of_memory_said(len(prompt.token_ids)):
        cache, hidden, records, change = read(model, ids, deadline, progress)
        logits = model.lm_head(hidden[-1])
        cache_bytes = cache.used_bytes
        trace = _first_trace(checkpoint, dense, prompt, name, logits, records, change)
        yield trace
        new_ids, new_scores = _continue(model, cache, logits, options.new_tokens, deadline, progress)
        del cache
        trace = replace(
            trace,
            continuation=str(checkpoint.tokenizer.decode(new_ids)),
            new_ids=new_ids,
            new_pieces=decode_pieces(new_ids, checkpoint.tokenizer),
            new_scores=new_scores,
        )
        if len(new_ids):
            yield trace
        if dense is None or not options.compare:
            return
        costs = _compare(model, dense, ids, cache_bytes, deadline, progress)
        quality: dict[str, Any] = {}
        if time.monotonic() < deadline:
            progress(0.9, "predictions")
            dense_hidden = dense.model.model(ids, use_cache=False).last_hidden_state[0]
            quality = agreement(model.lm_head, hidden, dense.model.lm_head, dense_hidden, ids[0])
        yield replace(trace, cost=costs[0], dense_cost=costs[1], **quality)


def _first_trace(
    checkpoint: Checkpoint,
    dense: DenseModel | None,
    prompt: Prompt,
    name: str,
    logits: Tensor,
    records: tuple[RoutingRecord, ...],
    change: np.ndarray,
) -> Trace:
    """What is known once the prompt was read; `logits` (V,) are those after its last token."""
    model = checkpoint.model
    structure, length = model.config.parsed_structure, len(prompt.token_ids)
    arrays: dict[str, Any] = level_arrays(model.config.parsed_structure, records, length) | empty_agreement(length)
    probabilities, next_ids = logits.float().softmax(-1).topk(min(NEXT_TOKENS, logits.numel()))
    return Trace(
        prompt=prompt.text,
        continuation="",
        token_ids=prompt.token_ids,
        starts=prompt.starts,
        ends=prompt.ends,
        pieces=prompt.pieces,
        **arrays,
        change=change,
        confidence=np.full_like(change, np.nan),
        bypass_scale=_stack([bypass.scale for bypass in model.model.bypasses], model.config.hidden_size),
        block_spans=np.asarray([-1 if s is None else s for s in structure.block_spans], dtype=np.int64),
        span_parents=np.asarray([-1 if s.parent is None else s.parent for s in structure.spans], dtype=np.int64),
        retention_ratios=np.asarray(model.config.retention_ratios, dtype=np.float64),
        next_ids=next_ids.cpu().numpy(),
        next_probabilities=probabilities.cpu().numpy(),
        next_pieces=decode_pieces(next_ids.cpu().numpy(), checkpoint.tokenizer),
        new_ids=np.zeros(0, dtype=np.int64),
        new_pieces=np.zeros(0, dtype=np.str_),
        new_scores=np.zeros((len(structure.spans), 0), dtype=np.float32),
        provenance=Provenance(
            checkpoint=name or checkpoint.folder.name,
            digest=checkpoint.digest,
            structure=structure.text,
            device=device_name(model.device),
            dtype=dtype_name(model),
            attention=str(model.config._attn_implementation),
            dense="" if dense is None else dense.description,
            versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        ),
    )


@torch.inference_mode()
def read(
    model: SubllmForCausalLM, ids: Tensor, deadline: float = math.inf, progress: Progress = silent
) -> tuple[SubllmCache, Tensor, tuple[RoutingRecord, ...], np.ndarray]:
    """One forward pass over a prompt, recording all that a trace holds of it.

    Args:
        model: in evaluation mode.
        ids: (1, T) token ids.
        deadline: by `time.monotonic`.
        progress: told what is being done.

    Returns:
        The cache; last hidden states (T, D); the routing; change per block (L, T).

    Raises:
        RunStopped: after the deadline.
    """
    steps = len(model.config.parsed_structure.text)
    shares: list[tuple[Tensor, Tensor]] = []  # per block: (positions, change); read once the device is done
    stream = torch.empty(0)

    def observe(state: StreamState) -> None:
        nonlocal stream
        check_time(deadline, f"after {state.step} of {steps} steps through the model")
        progress(0.4 * state.step / steps, "reading", tokens=f"{ids.shape[1]:,}", step=state.step, steps=steps)
        if state.symbol == BLOCK:
            before, after = stream[0], state.hidden_states[0]
            share = (after - before).norm(dim=-1, dtype=torch.float32) / before.norm(dim=-1, dtype=torch.float32)
            shares.append((state.positions[0], share))
        stream = state.hidden_states

    cache = SubllmCache(model.config)
    output = model.model(ids, past_key_values=cache, output_routing=True, observer=observe)
    change = np.full((len(shares), ids.shape[1]), np.nan, dtype=np.float16)
    for block, (positions, share) in enumerate(shares):
        change[block, positions.cpu().numpy()] = share.cpu().numpy()
    return cache, output.last_hidden_state[0], output.routing, change


def _continue(
    model: Any, cache: SubllmCache, logits: Tensor, length: int, deadline: float, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy continuation: ids (N,), and importance scores (S, N) of the tokens that were fed back."""
    spans = len(model.config.parsed_structure.spans)
    room = model.config.max_position_embeddings - cache.columns
    ends = model.generation_config.eos_token_id
    stops = set(ends) if isinstance(ends, list) else {ends}
    ids: list[int] = []
    scores = np.full((spans, max(min(length, room), 0)), np.nan, dtype=np.float32)
    while len(ids) < scores.shape[1]:
        token = int(logits.argmax())
        if token in stops:
            break
        check_time(deadline, f"after {len(ids)} new tokens")
        progress(0.4 + 0.2 * len(ids) / length, "continuing", done=len(ids), length=length)
        output = model(torch.tensor([[token]], device=logits.device), past_key_values=cache, output_routing=True)
        for span, record in enumerate(output.routing):
            if record.scores.shape[1]:
                scores[span, len(ids)] = record.scores[0, 0].item()
        ids.append(token)
        logits = output.logits[0, -1]
    return np.asarray(ids, dtype=np.int64), scores[:, : len(ids)]


def _compare(
    model: Any, dense: DenseModel, ids: Tensor, cache_bytes: int, deadline: float, progress: Progress
) -> tuple[Cost | None, Cost | None]:
    """Time and memory of reading the prompt, both models in turn; nothing if the time limit would not allow it."""

    def read() -> None:
        model(ids, past_key_values=SubllmCache(model.config), logits_to_keep=1)

    def read_dense() -> None:
        dense.model(ids, past_key_values=DynamicCache(config=dense.model.config), logits_to_keep=1)

    device = model.device
    progress(0.6, "memory")
    peaks = {}
    once = 0.0
    for key, run in (("subllm", read), ("dense", read_dense)):
        if time.monotonic() + once > deadline:
            return None, None
        once = timed(lambda run=run, key=key: peaks.update({key: peak_bytes(run, device)}), device).seconds  # type: ignore[misc]
    repeats = max(1, min(_MOST_REPEATS, int(_ENOUGH_SECONDS / (2 * once))))
    if time.monotonic() + 2 * repeats * once > deadline:
        return None, None
    progress(0.8, "timing", repeats=repeats)
    took = alternate({"subllm": read, "dense": read_dense}, repeats, device)
    seconds = {name: tuple(one.seconds for one in each) for name, each in took.items()}
    config = dense.model.config
    per_token = 2 * key_value_heads(config) * head_dim(config) * torch.finfo(dense.model.dtype).bits // 8
    dense_cache = ids.shape[1] * config.num_hidden_layers * per_token
    return (
        Cost(seconds["subllm"], peaks["subllm"], cache_bytes),
        Cost(seconds["dense"], peaks["dense"], dense_cache),
    )


def _stack(tensors: list[Tensor], width: int) -> np.ndarray:
    return np.stack([t.float().cpu().numpy() for t in tensors]) if tensors else np.zeros((0, width), dtype=np.float32)


def check_time(deadline: float, where: str) -> None:
    """Stop a run that takes too long.

    Args:
        deadline: by `time.monotonic`.
        where: the run is, for the message.

    Raises:
        RunStopped: after the deadline.
    """
    if time.monotonic() > deadline:
        raise RunStopped(
            f"The run met its time limit {where}. Shorten the prompt or the continuation, or raise SUBLLM_MAX_SECONDS."
        )


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """A model whose weights ask for no gradients, so that only what lies between is kept for a backward pass.

    Args:
        model: left as it was found.
    """
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def out_of_memory_said(tokens: int) -> Iterator[None]:
    """Turn a failed allocation into a message.

    Args:
        tokens: of the prompt.

    Raises:
        RunStopped: when memory runs out.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunStopped(
                f"Memory ran out on a prompt of {tokens:,} tokens ({str(error).splitlines()[0]}). "
                "Shorten the prompt, or choose a smaller dtype."
            ) from error
        raise
