"""Models and traces that outlive a rerun, and the order in which users get the device. All caches are here."""

import gc
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import torch

from analysis import Trace
from analysis.attention import attention_of
from analysis.attribution import Attribution, attribute
from analysis.calibration import this_machine
from analysis.comparison import Comparison, Setting, baseline, compare, prompt_of
from analysis.edits import Edit
from analysis.explained import Question
from analysis.generate import Generation, Sampling
from analysis.intervene import Ground, Outcome, intervene, judge, read_ground
from analysis.lens import Lens, confidence, read_off
from analysis.prompt import decode_pieces, read_answer, read_prompt
from analysis.record import Progress, RunOptions, silent, trace_stages
from analysis.roofline import Hardware
from analysis.search import Effects, estimate, measure
from subllm.checkpoints import DENSE_TWIN, Checkpoint, DenseModel, load_checkpoint, load_dense, pick_device, pick_dtype

_MODELS, _TRACES = 2, 32
_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")  # of a checkpoint, by the end of their names
_log = logging.getLogger("app.runs")


@dataclass(frozen=True)
class Source:
    """Where a trace came from: what it takes to load the same model again, and what to put into a link.

    Attributes:
        text: as typed.
        chat: it went through the chat template.
        choice: of checkpoint.
        folder: of the checkpoint.
        device: it ran on.
        dtype: it ran in.
    """

    text: str
    chat: bool
    choice: str
    folder: Path
    device: str
    dtype: str

    def load(self) -> tuple[Checkpoint, DenseModel]:
        """The checkpoint and its dense model; see `load`."""
        return load(self.folder, self.device, self.dtype)


def devices() -> list[str]:
    """Devices to choose from, the best first."""
    return list(dict.fromkeys([pick_device(), "cpu"]))


def dtypes(device: str) -> list[str]:
    """Dtypes to choose from, the default first.

    Args:
        device: one of `devices`.
    """
    return list(dict.fromkeys([pick_dtype(device), "float32", "bfloat16"]))


class _Models:
    """The models opened last, for all users.

    A model is loaded once and then never touched: when it is not among the last any more, only this reference to it
    goes, and its memory is free as soon as no session works with it.
    """

    def __init__(self) -> None:
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._models: OrderedDict[Any, tuple[Checkpoint, DenseModel]] = OrderedDict()

    def get(self, folder: Path, device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
        key = (folder, _stamp(folder), device, dtype)
        found = self._known(key)
        if found is None:
            with self._loading:  # one at a time, as each takes memory and transformers' settings are global
                found = self._known(key)  # by now, another user may have loaded it
                if found is None:
                    self._make_room()
                    checkpoint = load_checkpoint(folder, device, dtype)
                    found = checkpoint, load_dense(checkpoint)
                    with self._lock:
                        self._models[key] = found
        return found

    def _known(self, key: Any) -> tuple[Checkpoint, DenseModel] | None:
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
            return self._models.get(key)

    def _make_room(self) -> None:
        """Let go of what one more model would be too many with, before it is loaded."""
        with self._lock:
            while len(self._models) >= _MODELS:
                self._models.popitem(last=False)
        gc.collect()  # models have references in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stamp(folder: Path) -> tuple[Any, ...]:
    """Another one when a file of a checkpoint or of its dense twin is another; a file that is gone is none."""
    found = []
    for place in (folder, folder / DENSE_TWIN):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.name.endswith(_FILES):
                    with suppress(OSError):
                        status = entry.stat()
                        found.append((place.name, entry.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def load(folder: Path, device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
    """A checkpoint and its dense model, loaded once for all users; again if its files changed.

    Args:
        folder: of the checkpoint.
        device: to run on.
        dtype: to run in.

    Raises:
        SubllmError: if it cannot be loaded.
    """
    return _models().get(folder, device, dtype)


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
                progress(0.0, "waiting", ahead=ahead)
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


@st.cache_resource(show_spinner=False)
def _models() -> _Models:
    return _Models()


@st.cache_resource(show_spinner=False)
def _shared() -> tuple[_Traces, _Queue]:
    return _Traces(), _Queue()


def run(
    source: Source, options: RunOptions, progress: Progress, *, truncate: bool, limit: int
) -> Iterator[tuple[Trace, bool]]:
    """The trace of a prompt as it grows, or at once if the same run was made before.

    The device is taken until the last stage, so a caller that stops early must close the iterator.

    Args:
        source: of the trace.
        options: of the run.
        progress: told what is being done.
        truncate: cut a prompt that is too long.
        limit: most tokens that the operator allows.

    Yields:
        Stages of the trace, as `analysis.record.trace_stages` does, and whether that is all.

    Raises:
        PromptError: if the prompt cannot be taken.
        RunStopped: at the time limit.
        SubllmError: if the checkpoint cannot be loaded.
    """
    checkpoint, dense = source.load()
    model = checkpoint.model
    most = min(limit, model.config.max_position_embeddings)
    prompt = read_prompt(source.text, checkpoint.tokenizer, most, chat=source.chat, truncate=truncate)
    traces, queue = _shared()
    key = (
        checkpoint.digest,
        _stamp(source.folder),  # the dense model's files count, too
        str(model.device),
        str(model.dtype),
        source.choice,
        prompt.text,
        prompt.token_ids.tobytes(),
        options,
    )
    trace = traces.get(key)
    if trace is not None:
        _log.info("%s: %d tokens, known", source.choice, trace.num_tokens)
        yield trace, True
        return
    whole = not (options.compare or options.new_tokens)
    with queue.turn(progress):
        for trace in trace_stages(checkpoint, dense, prompt, options, name=source.choice, progress=progress):
            _log.info("%s: %d tokens, a stage done", source.choice, trace.num_tokens)
            yield trace, whole
    assert trace is not None
    traces.put(key, trace)


def follow(source: Source, trace: Trace, token: int) -> tuple[Lens, np.ndarray]:
    """One token of a trace in depth, and the readable text of what would be predicted after each block.

    Args:
        source: of the trace.
        trace: of a prompt.
        token: index into it.
    """
    checkpoint, _ = source.load()
    with _shared()[1].turn(silent):
        found = read_off(checkpoint.model, trace.token_ids, token)
    return found, decode_pieces(found.ids, checkpoint.tokenizer)


def read_off_all(source: Source, trace: Trace, seconds: float, progress: Progress) -> Trace:
    """The trace with `confidence`.

    Args:
        source: of the trace.
        trace: of a prompt.
        seconds: time limit.
        progress: told what is being done.

    Raises:
        RunStopped: at the time limit.
    """
    checkpoint, _ = source.load()
    with _shared()[1].turn(progress):
        return replace(trace, confidence=confidence(checkpoint.model, trace.token_ids, seconds, progress))


def ground_of(
    source: Source, trace: Trace, answer: str, known: Ground | None, progress: Progress, limit: int
) -> Ground:
    """A trace's prompt, ready for edits; read again if the model was unloaded in between.

    Args:
        source: of the trace.
        trace: of a prompt.
        answer: text whose probability is watched.
        known: what was read before.
        progress: told if others are ahead.
        limit: most tokens that the operator allows.

    Raises:
        PromptError: if the answer cannot be taken.
    """
    checkpoint, _ = source.load()
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    ids = read_answer(answer, checkpoint.tokenizer, most - trace.num_tokens)
    wanted = [*trace.token_ids.tolist(), *ids]
    if known is not None and known.model is checkpoint.model and known.ids[0].tolist() == wanted:
        return known
    with _shared()[1].turn(progress):
        return read_ground(checkpoint.model, trace.token_ids, ids)


def edited(
    ground: Ground, edits: Sequence[Edit], progress: Progress
) -> Iterator[tuple[Outcome, dict[str, np.ndarray]]]:
    """What edits change: at once after the prompt, then at every position.

    Args:
        ground: the prompt without edits.
        edits: in force.
        progress: told if others are ahead.

    Yields:
        The outcome, and predictions at every position as of `analysis.intervene.judge`; first without those.
    """
    queue = _shared()[1]  # no turn is held while a caller, who may be interrupted, draws
    with queue.turn(progress):
        outcome = intervene(ground, edits)
    yield outcome, {}
    with queue.turn(progress):
        judged = judge(ground, outcome)
    yield outcome, judged


def effects(ground: Ground, span: int, most: int, progress: Progress) -> Iterator[Effects]:
    """Single decisions by how much they move the answer, as they are measured.

    Args:
        ground: the prompt.
        span: number of the subsampling module.
        most: candidates that are measured exactly, those with the strongest estimates.
        progress: told how many are done; may raise to stop.

    Yields:
        Effects; first the estimates alone.
    """
    queue = _shared()[1]
    with queue.turn(progress):
        found: Effects | None = estimate(ground, span)
    assert found is not None
    measured = measure(ground, found, found.order()[:most].tolist(), progress)
    while found is not None:
        yield found
        with queue.turn(progress):
            found = next(measured, None)


def explain(source: Source, trace: Trace, question: Question, progress: Progress, **options: Any) -> Attribution:
    """Why a score, or the next token, is what it is.

    Args:
        source: of the trace.
        trace: of a prompt.
        question: what is to be explained.
        progress: told how far it is; may raise to stop.
        **options: of `analysis.attribution.attribute`.
    """
    checkpoint, _ = source.load()
    with _shared()[1].turn(progress):
        return attribute(checkpoint.model, trace.token_ids, question, progress=progress, **options)


def attention(source: Source, trace: Trace, token: int) -> np.ndarray:
    """(L, H, T) attention of one token; see `analysis.attention.attention_of`.

    Args:
        source: of the trace.
        trace: of a prompt.
        token: index into it.
    """
    checkpoint, _ = source.load()
    with _shared()[1].turn(silent):
        return attention_of(checkpoint.model, trace.token_ids, token)


def generation(
    source: Source,
    token_ids: Sequence[int],
    sampling: Sampling,
    edits: Sequence[Edit],
    progress: Progress,
    *,
    dense: bool,
) -> Generation:
    """A text to be continued step by step.

    Args:
        source: of the checkpoint.
        token_ids: of the prompt.
        sampling: how tokens are chosen.
        edits: to the routing.
        progress: told if others are ahead.
        dense: by the dense model, instead of the SUBLLM.
    """
    checkpoint, twin = source.load()
    with _shared()[1].turn(progress):
        model = twin.model if dense else checkpoint.model
        return Generation(model, list(token_ids), sampling, () if dense else tuple(edits))


def write(texts: Sequence[Generation], tokens: int, progress: Progress) -> Iterator[int]:
    """Continue texts by some tokens each, in turn.

    Args:
        texts: to be continued; those that have ended stay as they are.
        tokens: for each.
        progress: told how many are done; may raise to stop.

    Yields:
        How many tokens each was given.
    """
    for done in range(tokens):
        with _shared()[1].turn(progress):
            progress(done / tokens, "continuing", done=done, length=tokens)
            for text in texts:
                if not text.finished:
                    text.step()
        yield done + 1


def compare_setting(source: Source, setting: Setting, against: str, repeats: int, progress: Progress) -> Comparison:
    """Time and memory of prompts, next to a dense model.

    Args:
        source: of the checkpoint; its text is not used.
        setting: what to measure.
        against: baseline, as `analysis.comparison.baseline` takes it.
        repeats: timed passes of each model.
        progress: told what is being done.

    Raises:
        AnalysisError: if the checkpoint or the baseline cannot read such prompts, or memory does not suffice.
        CheckpointError: if the baseline cannot be loaded.
    """
    checkpoint, _ = source.load()
    ids = prompt_of(checkpoint, setting.tokens, setting.batch)
    with _shared()[1].turn(progress):
        dense = baseline(checkpoint, against)
        return compare(checkpoint.model, dense, ids, repeats, progress, retention=setting.retention)


def calibrate(device: str, dtype: str) -> Hardware:
    """This machine as a row of the hardware table, measured while nobody else runs.

    Args:
        device: one of `devices`.
        dtype: one of `dtypes`.
    """
    with _shared()[1].turn(silent):
        return this_machine(device, dtype)
