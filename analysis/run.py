"""One prompt through the full model, recorded as a trace."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from subllm import Event, Probe, Ran, SubllmCache, SubllmForCausalLM
from subllm.checkpoints.load import Checkpoint, DenseModel, dtype_name
from subllm.model.levels import Snapshot
from subllm.model.probe import PLAIN
from subllm.routing import routing_arrays

from .cost.measure import alternate, device_name, peak_bytes, timed
from .cost.operations import head_dim, key_value_heads
from .guard import Progress, check_time, out_of_memory_said, silent
from .trace.agreement import agree
from .trace.parts import Blocks, Continuation, Cost, Costs, Likelihood, Predictions, Prompt, Provenance, Routing
from .trace.tokenize import decode_pieces
from .trace.trace import Trace

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
    with out_of_memory_said(len(prompt)):
        cache = SubllmCache(model.config)
        reading = read(model, ids, cache=cache, deadline=deadline, progress=progress)
        logits = model.lm_head(reading.hidden[-1])
        cache_bytes = cache.used_bytes
        trace = Trace(
            prompt=prompt,
            routing=reading.routing,
            provenance=provenance_of(checkpoint, dense, name),
            blocks=reading.blocks,
            predictions=predictions_of(logits, checkpoint.tokenizer),
        )
        yield trace
        continuation = _continue(checkpoint, cache, logits, options.new_tokens, deadline, progress)
        del cache
        if continuation is not None:
            trace = replace(trace, continuation=continuation)
            yield trace
        if dense is None or not options.compare:
            return
        costs = _compare(model, dense, ids, cache_bytes, deadline, progress)
        if time.monotonic() < deadline:
            progress(0.9, "predictions")
            reference = dense.model.model(ids, use_cache=False).last_hidden_state[0]
            surprisal, agreement = agree(
                model.lm_head, reading.hidden, dense.model.lm_head, reference, ids[0], dense.description
            )
            trace = replace(trace, likelihood=Likelihood(surprisal), agreement=agreement)
        yield replace(trace, costs=costs)


def provenance_of(checkpoint: Checkpoint, dense: DenseModel | None, name: str = "") -> Provenance:
    """Where a trace of a checkpoint comes from.

    Args:
        checkpoint: that reads.
        dense: that it is compared with.
        name: of the checkpoint; its folder's if left out.
    """
    model = checkpoint.model
    return Provenance(
        checkpoint=name or checkpoint.folder.name,
        digest=checkpoint.digest,
        structure=str(model.config.structure),
        device=device_name(model.device),
        dtype=dtype_name(model),
        attention=str(model.config._attn_implementation),
        dense="" if dense is None else dense.description,
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )


def predictions_of(logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> Predictions:
    """The most likely next tokens.

    Args:
        logits: (V,) after the prompt.
        tokenizer: of the model.
    """
    probabilities, ids = logits.float().softmax(-1).topk(min(NEXT_TOKENS, logits.numel()))
    found = ids.cpu().numpy()
    return Predictions(found, probabilities.cpu().numpy(), decode_pieces(found, tokenizer))


@dataclass(frozen=True, eq=False)
class Reading:
    """One forward pass over a prompt, recorded.

    Attributes:
        routing: of the prompt.
        blocks: of the prompt.
        hidden: (T, D) last hidden states; what follows the prompt in the same pass included.
        snapshots: states before each router decided, by level, if they were to be kept.
    """

    routing: Routing
    blocks: Blocks
    hidden: Tensor
    snapshots: dict[int, Snapshot]


@torch.no_grad()
def read(
    model: SubllmForCausalLM,
    ids: Tensor,
    *,
    length: int | None = None,
    cache: SubllmCache | None = None,
    probe: Probe = PLAIN,
    known: Reading | None = None,
    deadline: float = math.inf,
    progress: Progress = silent,
) -> Reading:
    """One forward pass over a prompt, recording all that a trace holds of it.

    Args:
        model: in evaluation mode.
        ids: (1, T) token ids.
        length: of the prompt, which the first of them are; all if left out.
        cache: to be filled, or None for none.
        probe: who decides, where the pass goes on from, and whether snapshots are kept.
        known: an earlier reading of the same ids, whose blocks before those that the pass runs are taken over.
        deadline: by `time.monotonic`.
        progress: told what is being done.

    Raises:
        RunStopped: after the deadline.
    """
    length = ids.shape[1] if length is None else length
    structure = model.config.parsed_structure
    steps, done = len(structure.text), 0 if probe.resume is None else probe.resume.step
    ran: list[tuple[int, Tensor, Tensor]] = []  # block, positions, change; read once the device is done

    def report() -> None:
        check_time(deadline, f"after {done} of {steps} steps through the model")
        progress(0.4 * done / steps, "reading", tokens=f"{length:,}", step=done, steps=steps)

    def observe(event: Event) -> None:
        nonlocal done
        done += 1
        report()
        if isinstance(event, Ran):
            before, after = event.before.hidden_states[0], event.after.hidden_states[0]
            change = (after - before).norm(dim=-1, dtype=torch.float32) / before.norm(dim=-1, dtype=torch.float32)
            ran.append((event.block, event.before.positions[0], change))

    report()
    output = model.model(
        ids, past_key_values=cache, use_cache=cache is not None, probe=replace(probe, record=True, observe=observe)
    )
    change = np.full((structure.num_blocks, length), np.nan, dtype=np.float16)
    if known is not None:
        change[:] = known.blocks.change
    for block, positions, values in ran:
        places = positions.cpu().numpy()
        inside = places < length
        change[block] = np.nan
        change[block, places[inside]] = values.cpu().numpy()[inside]
    routing = routing_of(model, routing_arrays(output.routing, length))
    return Reading(routing, Blocks(change), output.last_hidden_state[0], probe.snapshots)


def routing_of(model: SubllmForCausalLM, arrays: Mapping[str, np.ndarray]) -> Routing:
    """The routing part of a trace.

    Args:
        model: that was run.
        arrays: of `subllm.routing.routing_arrays`.
    """
    config, structure = model.config, model.config.parsed_structure
    scales = [bypass.scale.float().cpu().numpy() for bypass in model.model.bypasses]
    return Routing(
        routers=np.asarray(config.routers, dtype=np.str_),
        parents=np.asarray(structure.parents, dtype=np.int64),
        retention_ratios=np.asarray(config.retention_ratios, dtype=np.float64),
        block_levels=np.asarray(structure.block_levels, dtype=np.int64),
        bypass_scale=np.stack(scales) if scales else np.zeros((0, config.hidden_size), dtype=np.float32),
        **arrays,
    )


def _continue(
    checkpoint: Checkpoint, cache: SubllmCache, logits: Tensor, length: int, deadline: float, progress: Progress
) -> Continuation | None:
    """Greedy continuation, with what the routers decided about the tokens that were fed back; None if it is empty."""
    model: Any = checkpoint.model
    room = model.config.max_position_embeddings - cache.columns
    stops = end_tokens(model)
    ids: list[int] = []
    decided: list[dict[str, np.ndarray]] = []
    while len(ids) < min(length, room):
        token = int(logits.argmax())
        if token in stops:
            break
        check_time(deadline, f"after {len(ids)} new tokens")
        progress(0.4 + 0.2 * len(ids) / length, "continuing", done=len(ids), length=length)
        output = model(torch.tensor([[token]], device=logits.device), past_key_values=cache, output_routing=True)
        decided.append(routing_arrays(output.routing, 1))
        ids.append(token)
        logits = output.logits[0, -1]
    if not ids:
        return None
    names = ("reached", "kept", "weights", "scores")
    return Continuation(
        text=str(checkpoint.tokenizer.decode(ids)),
        ids=np.asarray(ids, dtype=np.int64),
        pieces=decode_pieces(np.asarray(ids), checkpoint.tokenizer),
        **{name: np.concatenate([arrays[name] for arrays in decided], axis=1) for name in names},
    )


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a text, in the model's order."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


def _compare(
    model: Any, dense: DenseModel, ids: Tensor, cache_bytes: int, deadline: float, progress: Progress
) -> Costs | None:
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
            return None
        once = timed(lambda run=run, key=key: peaks.update({key: peak_bytes(run, device)}), device).seconds  # type: ignore[misc]
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
        Cost(seconds["subllm"], peaks["subllm"], cache_bytes),
        Cost(seconds["dense"], peaks["dense"], dense_cache),
    )
