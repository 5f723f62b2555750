"""Traces of prompts, as they grow and in depth."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import streamlit as st
import torch

from analysis import Trace
from analysis.debug.attention import attention_of
from analysis.debug.attribution import Attribution, attribute
from analysis.debug.lens import Lens, confidence, logit_lens
from analysis.debug.target import Question
from analysis.guard import Progress
from analysis.run import RunOptions, trace_stages
from analysis.trace.tokenize import decode_pieces, read_prompt
from subllm.checkpoints.load import Checkpoint
from subllm.routing import Replay

from .last_used import LastUsed
from .models import ModelSpec
from .queue import turn

_MOST = 32  # traces that are kept
_log = logging.getLogger("app.engine")


@dataclass(frozen=True)
class Recipe:
    """What it takes to make a run again.

    Attributes:
        text: the prompt as typed.
        chat: whether it goes through the chat template.
        model: model that processes it.
    """

    text: str
    chat: bool
    model: ModelSpec


@st.cache_resource(show_spinner=False)
def _traces() -> LastUsed[Trace]:
    return LastUsed(_MOST)


def run(
    recipe: Recipe, options: RunOptions, progress: Progress, *, truncate: bool, limit: int
) -> Iterator[tuple[Trace, bool]]:
    """The trace of a prompt as it grows, or at once if the same run was made before.

    The run holds the device's turn until its last stage, so a caller that stops early must close the iterator.

    Args:
        recipe: what to run.
        options: what to measure besides the prefill.
        progress: receives what is being done.
        truncate: whether a prompt that is too long is cut.
        limit: maximum number of tokens that the operator allows.

    Yields:
        Stages of the trace, as `analysis.run.trace_stages` does, and whether that is all.

    Raises:
        PromptError: if the prompt cannot be taken.
        RunStopped: at the time limit.
        SubllmError: if the checkpoint cannot be loaded.
    """
    model = recipe.model
    checkpoint, dense = model.load(progress)
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    prompt = read_prompt(recipe.text, checkpoint.tokenizer, most, chat=recipe.chat, truncate=truncate)
    files = model.files()  # the dense model's files count, too
    where = (str(checkpoint.model.device), str(checkpoint.model.dtype), model.checkpoint)
    key = (checkpoint.digest, files, where, prompt.text, prompt.token_ids.tobytes(), options)
    trace = _traces().get(key)
    if trace is not None:
        _log.info("%s: %d tokens, known", model.checkpoint, trace.num_tokens)
        yield trace, True
        return
    whole = not (options.compare or options.new_tokens)
    with turn(model.device, progress):
        for trace in trace_stages(checkpoint, prompt, options, dense=dense, name=model.checkpoint, progress=progress):
            _log.info("%s: %d tokens, a stage done", model.checkpoint, trace.num_tokens)
            yield trace, whole
    assert trace is not None
    if trace.costs is not None or not options.compare:  # else time ran out, and another run may have enough
        _traces().put(key, trace)


def _replay(checkpoint: Checkpoint, trace: Trace) -> Replay:
    """What a trace recorded, edits included, for a further pass over its prompt."""
    recorded = (
        torch.tensor(array, device=checkpoint.model.device) for array in (trace.routing.kept, trace.routing.weights)
    )
    return Replay(*recorded)


def follow(model: ModelSpec, trace: Trace, token: int, progress: Progress) -> tuple[Lens, np.ndarray]:
    """One token of a trace in depth, and the text of what each block would predict.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        token: index of the token in the prompt.
        progress: receives the number of runs ahead.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        found = logit_lens(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace))
    return found, decode_pieces(found.ids, checkpoint.tokenizer)


def read_off_all(model: ModelSpec, trace: Trace, seconds: float, progress: Progress) -> Trace:
    """The trace with the confidence after every block.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt with its blocks.
        seconds: time limit.
        progress: receives what is being done.

    Raises:
        RunStopped: at the time limit.
    """
    checkpoint, _ = model.load(progress)
    assert trace.blocks is not None
    with turn(model.device, progress):
        replay = _replay(checkpoint, trace)
        found = confidence(checkpoint.model, trace.prompt.token_ids, seconds, progress, replay)
    return replace(trace, blocks=replace(trace.blocks, confidence=found))


def explain(model: ModelSpec, trace: Trace, question: Question, progress: Progress, **options: Any) -> Attribution:
    """The contribution of each part of the prompt to a score or to the next token.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        question: what to explain.
        progress: receives how far the method is; may raise to stop.
        **options: further arguments of `analysis.debug.attribution.attribute`.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        return attribute(checkpoint.model, trace.prompt.token_ids, question, progress=progress, **options)


def attention(model: ModelSpec, trace: Trace, token: int, progress: Progress) -> np.ndarray:
    """(L, H, T) attention of one token; see `analysis.debug.attention.attention_of`.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        token: index of the token in the prompt.
        progress: receives the number of runs ahead.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        return attention_of(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace))
