"""Models and traces that outlive a rerun, and the order in which users get the device. All caches are here."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import torch

from analysis import Trace
from analysis.lens import Lens, read_off
from analysis.prompt import Prompt, decode_pieces, read_prompt
from analysis.record import RunOptions, record_trace
from subllm.checkpoints import Checkpoint, DenseModel, load_checkpoint, load_dense, pick_device, pick_dtype

_MODELS, _TRACES = 2, 32
Progress = Callable[[float, str], None]


def devices() -> list[str]:
    """Devices to choose from, the best first."""
    return list(dict.fromkeys([pick_device(), "cpu"]))


def dtypes(device: str) -> list[str]:
    """Dtypes to choose from, the default first.

    Args:
        device: one of `devices`.
    """
    return list(dict.fromkeys([pick_dtype(device), "float32", "bfloat16"]))


def _release(models: tuple[Checkpoint, DenseModel]) -> None:
    parts: list[torch.nn.Module] = [models[0].model, models[1].model]
    if models[0].model.device.type == "cuda":
        for part in parts:
            part.to("cpu")
        torch.cuda.empty_cache()


@st.cache_resource(max_entries=_MODELS, show_spinner=False, on_release=_release)
def _models(folder: str, stamp: tuple[int, ...], device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
    checkpoint = load_checkpoint(Path(folder), device, dtype)
    return checkpoint, load_dense(checkpoint)


def load(folder: Path, device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
    """A checkpoint and its dense model, loaded once for all users; again if its files changed.

    Args:
        folder: of the checkpoint.
        device: to run on.
        dtype: to run in.

    Raises:
        SubllmError: if it cannot be loaded.
    """
    stamp = tuple(p.stat().st_mtime_ns for p in sorted(folder.glob("*")) if p.suffix in (".json", ".safetensors"))
    return _models(str(folder), stamp, device, dtype)


class _Traces:
    """The last traces, by everything that changes the result."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traces: OrderedDict[Any, Trace] = OrderedDict()

    def get(self, key: Any) -> Trace | None:
        with self._lock:
            if key in self._traces:
                self._traces.move_to_end(key)
            return self._traces.get(key)

    def put(self, key: Any, trace: Trace) -> None:
        with self._lock:
            self._traces[key] = trace
            while len(self._traces) > _TRACES:
                self._traces.popitem(last=False)


class _Queue:
    """One run at a time, in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self, progress: Progress) -> Iterator[None]:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
        try:
            while True:
                with self._changed:
                    ahead = self._waiting.index(ticket)
                    if ahead:
                        self._changed.wait(timeout=0.5)
                if not ahead:
                    break
                progress(0.0, f"Waiting: {ahead} {'run is' if ahead == 1 else 'runs are'} before yours")
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


@st.cache_resource(show_spinner=False)
def _shared() -> tuple[_Traces, _Queue]:
    return _Traces(), _Queue()


def run(
    checkpoint: Checkpoint,
    dense: DenseModel,
    name: str,
    text: str,
    options: RunOptions,
    progress: Progress,
    *,
    chat: bool,
    truncate: bool,
    limit: int,
) -> Trace:
    """The trace of a prompt: from the cache if the same run was made before, else made now.

    Args:
        checkpoint: loaded.
        dense: to compare with.
        name: of the checkpoint.
        text: of the prompt.
        options: of the run.
        progress: called with the share done and what is being done.
        chat: use the chat template.
        truncate: cut a prompt that is too long.
        limit: most tokens that the operator allows.

    Raises:
        PromptError: if the prompt cannot be taken.
        RunStopped: at the time limit.
    """
    model = checkpoint.model
    most = min(limit, model.config.max_position_embeddings)
    prompt: Prompt = read_prompt(text, checkpoint.tokenizer, most, chat=chat, truncate=truncate)
    traces, queue = _shared()
    key = (
        checkpoint.digest,
        str(model.device),
        str(model.dtype),
        name,
        prompt.text,
        prompt.token_ids.tobytes(),
        options,
    )
    trace = traces.get(key)
    if trace is None:
        with queue.turn(progress):
            trace = record_trace(checkpoint, dense, prompt, options, name=name, progress=progress)
        traces.put(key, trace)
    return trace


def follow(checkpoint: Checkpoint, trace: Trace, token: int) -> tuple[Lens, np.ndarray]:
    """One token of a trace in depth, and the readable text of what would be predicted after each block.

    Args:
        checkpoint: that the trace is of.
        trace: of a prompt.
        token: index into it.
    """
    with _shared()[1].turn(lambda share, text: None):
        found = read_off(checkpoint.model, trace.token_ids, token)
    return found, decode_pieces(found.ids, checkpoint.tokenizer)
