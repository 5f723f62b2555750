"""The models, what is kept on their devices, and the order in which people get a device.

Sessions hold recipes and arrays; every model, snapshot and cache is held here, and bounded. Each device has a queue of
its own.
"""

import gc
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import streamlit as st
import torch

from analysis import Trace
from analysis.cost.calibration import this_machine
from analysis.cost.comparison import Comparison, Setting, baseline, compare, prompt_of
from analysis.cost.roofline import Hardware
from analysis.debug.attention import attention_of
from analysis.debug.attribution import Attribution, attribute
from analysis.debug.edits import Edit
from analysis.debug.generation import Generation, NewToken, Sampling
from analysis.debug.intervene import Ground, Outcome, read_ground, stages
from analysis.debug.lens import Lens, confidence, read_off
from analysis.debug.search import Effects, estimate, measure
from analysis.debug.target import Question
from analysis.guard import Progress
from analysis.run import RunOptions, trace_stages
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import decode_pieces, read_answer, read_prompt
from app.files import Stamp, stamp
from subllm.checkpoints.load import (
    DENSE_TWIN,
    Checkpoint,
    DenseModel,
    load_checkpoint,
    load_dense,
    pick_device,
    pick_dtype,
)
from subllm.routing import Replay

_MODELS, _TRACES, _GROUNDS, _TEXTS = 2, 32, 2, 4  # most of each that are kept
_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")  # of a checkpoint, by the end of their names
_log = logging.getLogger("app.engine")
_Value = TypeVar("_Value")


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


@dataclass(frozen=True, eq=False)
class Text:
    """The recipe of a text that is written step by step.

    Attributes:
        source: of the checkpoint.
        prompt: tokenised.
        sampling: how tokens are chosen.
        edits: to the routing.
        dense: it is written by the dense model, instead of the SUBLLM.
        tokens: written so far.
    """

    source: Source
    prompt: Prompt
    sampling: Sampling
    edits: tuple[Edit, ...]
    dense: bool
    tokens: tuple[NewToken, ...] = ()


def devices() -> list[str]:
    """Devices to choose from, the best first."""
    return list(dict.fromkeys([pick_device(), "cpu"]))


def dtypes(device: str) -> list[str]:
    """Dtypes to choose from, the default first.

    Args:
        device: one of `devices`.
    """
    return list(dict.fromkeys([pick_dtype(device), "float32", "bfloat16"]))


class _Last(Generic[_Value]):
    """The values used last, by key.

    Args:
        most: that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def take(self, key: Hashable) -> _Value | None:
        """The value, which is no longer kept."""
        with self._lock:
            return self._values.pop(key, None)

    def put(self, key: Hashable, value: _Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def make_room(self) -> None:
        """Let go of what one more value would be too many with."""
        with self._lock:
            while len(self._values) >= self._most:
                self._values.popitem(last=False)

    def keep(self, wanted: Callable[[_Value], bool]) -> None:
        """Let go of all values but those."""
        with self._lock:
            for key in [key for key, value in self._values.items() if not wanted(value)]:
                del self._values[key]

    def values(self) -> list[_Value]:
        with self._lock:
            return list(self._values.values())


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


class _Engine:
    """All that outlives a rerun.

    A model is loaded once and then never touched: when it is not among the last any more, only the references to it
    that are held here go, and its memory is free as soon as no run works with it.
    """

    def __init__(self) -> None:
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._models: _Last[tuple[Checkpoint, DenseModel]] = _Last(_MODELS)
        self.traces: _Last[Trace] = _Last(_TRACES)
        self.grounds: _Last[Ground] = _Last(_GROUNDS)
        self.texts: _Last[Generation] = _Last(_TEXTS)
        self._queues: dict[str, _Queue] = {}

    def turn(self, device: str, progress: Progress) -> Any:
        """A device for oneself, once those who asked before have had it."""
        with self._lock:
            queue = self._queues.setdefault(str(torch.device(device)), _Queue())
        return queue.turn(progress)

    def load(self, folder: Path, device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
        key = (folder, _stamp(folder), device, dtype)
        found = self._models.get(key)
        if found is None:
            with self._loading:  # one at a time, as each takes memory and transformers' settings are global
                found = self._models.get(key)  # by now, another user may have loaded it
                if found is None:
                    self._make_room()
                    checkpoint = load_checkpoint(folder, device, dtype)
                    found = checkpoint, load_dense(checkpoint)
                    self._models.put(key, found)
        return found

    def _held(self) -> set[int]:
        return {id(model) for models in self._models.values() for model in (models[0].model, models[1].model)}

    def keep(self, store: "_Last[Any]", key: Hashable, value: Any) -> None:
        """Keep what lies on a device, unless its model has been let go of."""
        with self._lock:
            if id(value.model) in self._held():
                store.put(key, value)

    def _make_room(self) -> None:
        with self._lock:
            self._models.make_room()
            kept = self._held()
            self.grounds.keep(lambda ground: id(ground.model) in kept)
            self.texts.keep(lambda text: id(text.model) in kept)
        gc.collect()  # models have references in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@st.cache_resource(show_spinner=False)
def _engine() -> _Engine:
    return _Engine()


def _stamp(folder: Path) -> tuple[Stamp, Stamp]:
    """Another one when a file of a checkpoint or of its dense twin is another."""
    return stamp(folder, _FILES), stamp(folder / DENSE_TWIN, _FILES)


def load(folder: Path, device: str, dtype: str) -> tuple[Checkpoint, DenseModel]:
    """A checkpoint and its dense model, loaded once for all users; again if its files changed.

    Args:
        folder: of the checkpoint.
        device: to run on.
        dtype: to run in.

    Raises:
        SubllmError: if it cannot be loaded.
    """
    return _engine().load(folder, device, dtype)


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
        Stages of the trace, as `analysis.run.trace_stages` does, and whether that is all.

    Raises:
        PromptError: if the prompt cannot be taken.
        RunStopped: at the time limit.
        SubllmError: if the checkpoint cannot be loaded.
    """
    engine = _engine()
    checkpoint, dense = source.load()
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    prompt = read_prompt(source.text, checkpoint.tokenizer, most, chat=source.chat, truncate=truncate)
    files = _stamp(source.folder)  # the dense model's files count, too
    where = (str(checkpoint.model.device), str(checkpoint.model.dtype), source.choice)
    key = (checkpoint.digest, files, where, prompt.text, prompt.token_ids.tobytes(), options)
    trace = engine.traces.get(key)
    if trace is not None:
        _log.info("%s: %d tokens, known", source.choice, trace.num_tokens)
        yield trace, True
        return
    whole = not (options.compare or options.new_tokens)
    with engine.turn(source.device, progress):
        for trace in trace_stages(checkpoint, prompt, options, dense=dense, name=source.choice, progress=progress):
            _log.info("%s: %d tokens, a stage done", source.choice, trace.num_tokens)
            yield trace, whole
    assert trace is not None
    if trace.costs is not None or not options.compare:  # else time ran out, and another run may have enough
        engine.traces.put(key, trace)


def _replay(checkpoint: Checkpoint, trace: Trace) -> Replay:
    """What a trace recorded, edits included, for a further pass over its prompt."""
    recorded = (
        torch.tensor(array, device=checkpoint.model.device) for array in (trace.routing.kept, trace.routing.weights)
    )
    return Replay(*recorded)


def follow(source: Source, trace: Trace, token: int, progress: Progress) -> tuple[Lens, np.ndarray]:
    """One token of a trace in depth, and the readable text of what would be predicted after each block.

    Args:
        source: of the trace.
        trace: of a prompt.
        token: index into it.
        progress: told if others are ahead.
    """
    checkpoint, _ = source.load()
    with _engine().turn(source.device, progress):
        found = read_off(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace))
    return found, decode_pieces(found.ids, checkpoint.tokenizer)


def read_off_all(source: Source, trace: Trace, seconds: float, progress: Progress) -> Trace:
    """The trace with the confidence after every block.

    Args:
        source: of the trace.
        trace: of a prompt, with its blocks.
        seconds: time limit.
        progress: told what is being done.

    Raises:
        RunStopped: at the time limit.
    """
    checkpoint, _ = source.load()
    assert trace.blocks is not None
    with _engine().turn(source.device, progress):
        replay = _replay(checkpoint, trace)
        found = confidence(checkpoint.model, trace.prompt.token_ids, seconds, progress, replay)
    return replace(trace, blocks=replace(trace.blocks, confidence=found))


def _ground(source: Source, trace: Trace, answer: str, progress: Progress, limit: int) -> Ground:
    """A trace's prompt read without edits, and what may follow it; known, or read now."""
    engine = _engine()
    checkpoint, _ = source.load()
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    answer_ids = read_answer(answer, checkpoint.tokenizer, most - trace.num_tokens)
    prompt = trace.prompt
    key = (id(checkpoint.model), source.choice, prompt.text, prompt.token_ids.tobytes(), tuple(answer_ids))
    ground = engine.grounds.get(key)
    if ground is None:
        with engine.turn(source.device, progress):
            ground = engine.grounds.get(key)  # by now, another user may have read it
            if ground is None:
                engine.grounds.make_room()
                ground = read_ground(checkpoint, prompt, answer_ids, source.choice)
                engine.keep(engine.grounds, key, ground)
    return ground


def edited(
    source: Source, trace: Trace, answer: str, edits: Sequence[Edit], progress: Progress, limit: int
) -> Iterator[Outcome]:
    """What edits change: at once after the prompt, then at every position.

    Args:
        source: of the trace.
        trace: of a prompt, untouched.
        answer: text whose probability is watched.
        edits: in force.
        progress: told if others are ahead.
        limit: most tokens that the operator allows.

    Yields:
        As `analysis.debug.intervene.stages`.

    Raises:
        PromptError: if the answer cannot be taken.
        AnalysisError: if an edit does not fit.
    """
    found = stages(_ground(source, trace, answer, progress, limit), edits)
    while True:
        with _engine().turn(source.device, progress):  # no turn is held while a caller, who may be interrupted, draws
            outcome = next(found, None)
        if outcome is None:
            return
        yield outcome


def effects(
    source: Source, trace: Trace, answer: str, level: int, most: int, progress: Progress, limit: int
) -> Iterator[Effects]:
    """Single decisions by how much they move the answer, as they are measured.

    Args:
        source: of the trace.
        trace: of a prompt, untouched.
        answer: text whose probability is watched.
        level: number of the level.
        most: candidates that are measured exactly, those with the strongest estimates.
        progress: told how many are done; may raise to stop.
        limit: most tokens that the operator allows.

    Yields:
        Effects; first the estimates alone.
    """
    ground = _ground(source, trace, answer, progress, limit)
    with _engine().turn(source.device, progress):
        found: Effects | None = estimate(ground, level)
    assert found is not None
    measured = measure(ground, found, found.order()[:most].tolist(), progress)
    while found is not None:
        yield found
        with _engine().turn(source.device, progress):
            found = next(measured, None)


def explain(source: Source, trace: Trace, question: Question, progress: Progress, **options: Any) -> Attribution:
    """Why a score, or the next token, is what it is.

    Args:
        source: of the trace.
        trace: of a prompt.
        question: what is to be explained.
        progress: told how far it is; may raise to stop.
        **options: of `analysis.debug.attribution.attribute`.
    """
    checkpoint, _ = source.load()
    with _engine().turn(source.device, progress):
        return attribute(checkpoint.model, trace.prompt.token_ids, question, progress=progress, **options)


def attention(source: Source, trace: Trace, token: int, progress: Progress) -> np.ndarray:
    """(L, H, T) attention of one token; see `analysis.debug.attention.attention_of`.

    Args:
        source: of the trace.
        trace: of a prompt.
        token: index into it.
        progress: told if others are ahead.
    """
    checkpoint, _ = source.load()
    with _engine().turn(source.device, progress):
        return attention_of(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace))


@contextmanager
def _written(text: Text) -> Iterator[Generation]:
    """A text as it stands, ready to be continued; to be used while its device is one's own."""
    checkpoint, twin = text.source.load()
    model = twin.model if text.dense else checkpoint.model
    prompt = text.prompt
    key = (id(model), prompt.text, prompt.token_ids.tobytes(), text.sampling, text.edits)
    live = _engine().texts.take(key)  # nobody else can have it meanwhile
    if live is None:
        _engine().texts.make_room()
        live = Generation(model, prompt, text.sampling, () if text.dense else text.edits)
    live.restore(text.tokens)
    yield live
    _engine().keep(_engine().texts, key, live)


def finished(text: Text, progress: Progress) -> bool:
    """Whether a text has ended; its prompt is read if it was not yet.

    Args:
        text: to be continued.
        progress: told if others are ahead.

    Raises:
        AnalysisError: if the prompt fills the model, or an edit does not fit.
    """
    with _engine().turn(text.source.device, progress), _written(text) as live:
        return live.finished


def write(texts: Sequence[Text], tokens: int, progress: Progress) -> Iterator[list[Text]]:
    """Continue texts by some tokens each, in turn.

    Args:
        texts: to be continued; those that have ended stay as they are.
        tokens: for each.
        progress: told how many are done; may raise to stop.

    Yields:
        The texts after every token.
    """
    written = list(texts)
    for done in range(tokens):
        for number, text in enumerate(written):
            with _engine().turn(text.source.device, progress), _written(text) as live:
                progress(done / tokens, "continuing", done=done, length=tokens)
                if not live.finished:
                    written[number] = replace(text, tokens=(*text.tokens, live.step()))
        yield list(written)


def branch(text: Text, length: int, token: int, progress: Progress) -> Text:
    """Go back in a text, and write another token.

    Args:
        text: to be changed.
        length: tokens that stay.
        token: that follows them.
        progress: told if others are ahead.
    """
    kept = replace(text, tokens=text.tokens[:length])
    with _engine().turn(text.source.device, progress), _written(kept) as live:
        return replace(kept, tokens=(*kept.tokens, live.step(token)))


def compare_setting(source: Source, setting: Setting, against: str, repeats: int, progress: Progress) -> Comparison:
    """Time and memory of prompts, next to a dense model.

    Args:
        source: of the checkpoint; its text is not used.
        setting: what to measure.
        against: baseline, as `analysis.cost.comparison.baseline` takes it.
        repeats: timed passes of each model.
        progress: told what is being done.

    Raises:
        AnalysisError: if the checkpoint or the baseline cannot read such prompts, or memory does not suffice.
        CheckpointError: if the baseline cannot be loaded.
    """
    checkpoint, _ = source.load()
    ids = prompt_of(checkpoint, setting.tokens, setting.batch)
    with _engine().turn(source.device, progress):
        dense = baseline(checkpoint, against)
        return compare(checkpoint.model, dense, ids, repeats, progress, retention=setting.retention)


def calibrate(device: str, dtype: str, progress: Progress) -> Hardware:
    """This machine as a row of the hardware table, measured while nobody else runs on the device.

    Args:
        device: one of `devices`.
        dtype: one of `dtypes`.
        progress: told if others are ahead.
    """
    with _engine().turn(device, progress):
        return this_machine(device, dtype)
