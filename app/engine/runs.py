"""Traces of prompts, as they grow and in depth."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import streamlit as st
import torch

from analysis import AnalysisError, Trace
from analysis.debug.answer import with_answer
from analysis.debug.attention import attention_of
from analysis.debug.attribution import Attribution, attribute
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import Edit, read_edits
from analysis.debug.lens import Lens, confidence, logit_lens
from analysis.debug.level_states import LevelStates, level_states
from analysis.debug.target import Question
from analysis.guard import Progress
from analysis.run import RunOptions, answer_stages, trace_stages
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import decode_pieces, read_again, read_prompt
from subllm.checkpoints.load import Checkpoint
from subllm.routing import Replay

from .last_used import LastUsed
from .models import ModelSpec
from .queue import turn
from .work import admit

_MOST = 32  # traces that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What it takes to make a run again.

    Attributes:
        text: the prompt as typed.
        chat: whether it goes through the chat template.
        model: model that processes it.
        again: whether the model's tokenizer makes the tokens of the run of the text; not of every answer.
    """

    text: str
    chat: bool
    model: ModelSpec
    again: bool = True


@st.cache_resource(show_spinner=False)
def _traces() -> LastUsed[Trace]:
    return LastUsed(_MOST)


def run(
    recipe: Recipe,
    options: RunOptions,
    progress: Progress,
    *,
    truncate: bool,
    limit: int,
    so_far: Callable[[Trace], object] | None = None,
) -> Iterator[tuple[Trace, bool]]:
    """The trace of a prompt as it grows, or at once if the same run was made before.

    Args:
        recipe: what to run.
        options: what to measure besides the prefill.
        progress: receives what is being done.
        truncate: whether a prompt that is too long is cut.
        limit: maximum number of tokens that the operator allows.
        so_far: receives the trace after every new token, as in `analysis.run.trace_stages`.

    Yields:
        Stages of the trace, as `analysis.run.trace_stages` does, and whether that is all.

    Raises:
        PromptError: if the prompt cannot be taken.
        RunStopped: at a limit.
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
        yield trace, True
        return
    stages = trace_stages(
        checkpoint, prompt, options, dense=dense, name=model.checkpoint, progress=progress, so_far=so_far
    )
    for trace in _drawn(model, stages, len(prompt), progress):
        _log.debug("a trace of %d tokens is there", len(prompt))  # tests/benchmarks/browser.py reads this line
        yield trace, not (options.compare or options.new_tokens)
    assert trace is not None
    whole = trace.costs is not None and trace.agreement is not None
    if whole or not options.compare:  # else time ran out, and another run may have enough
        _traces().put(key, trace)


def _drawn(model: ModelSpec, stages: Iterator[Trace], tokens: int, progress: Progress) -> Iterator[Trace]:
    """The stages of a run of so many tokens, each made during a turn."""
    admit(progress, tokens, texts=1)
    while True:
        with turn(model.device, progress):  # no turn is held while a caller, who may be interrupted, draws
            found = next(stages, None)
        if found is None:
            return
        yield found


def recipe_of_cut(recipe: Recipe, prompt: Prompt, progress: Progress) -> Recipe:
    """What makes the run of a prompt again that may have been cut; nothing does if its chat template was cut.

    Args:
        recipe: of the whole prompt.
        prompt: what was left of it.
        progress: receives what is being done.
    """
    if prompt.text == recipe.text or recipe.chat:
        return replace(recipe, again=not recipe.chat)
    checkpoint, _ = recipe.model.load(progress)
    read = read_again(prompt.text, prompt.token_ids, checkpoint.tokenizer)
    return Recipe(prompt.text, False, recipe.model, read is not None)


def run_with_answer(
    recipe: Recipe,
    trace: Trace,
    prompt: Prompt,
    ids: Sequence[int],
    edits: Sequence[Edit],
    progress: Progress,
    *,
    limit: int,
) -> tuple[Trace, Recipe]:
    """A prompt and its answer as one run; compared with the dense model if the run of the prompt was.

    Args:
        recipe: of the run that was continued.
        trace: of that run.
        prompt: what was continued, which may have other turns than the run.
        ids: (N,) ids of the answer.
        edits: that the answer was generated under.
        progress: receives what is being done.
        limit: maximum number of tokens that the operator allows.

    Raises:
        AnalysisError: if there is no answer, prompt and answer are too long, or an edit does not fit.
        RunStopped: at a limit.
    """
    model = recipe.model
    checkpoint, dense = model.load(progress)
    answered = with_answer(prompt, ids, checkpoint.tokenizer)
    if len(answered.prompt) > limit:
        raise AnalysisError(
            "Prompt and answer have {tokens:,} tokens together; at most {limit:,} fit here. Shorten the prompt, or "
            "write a shorter answer.",
            tokens=len(answered.prompt),
            limit=limit,
        )
    stages = answer_stages(
        checkpoint,
        prompt,
        answered,
        edits,
        rule=trace.provenance.rule if tuple(map(str, edits)) == trace.provenance.edits else "",
        dense=None if trace.costs is None else dense,
        name=model.checkpoint,
        progress=progress,
    )
    *_, found = _drawn(model, stages, len(answered.prompt), progress)
    return found, Recipe(answered.prompt.text, False, model, answered.again)


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
        progress: receives what is being done; may raise to stop.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        found = logit_lens(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace), progress)
    return found, decode_pieces(found.ids, checkpoint.tokenizer)


def states_around(model: ModelSpec, trace: Trace, level: int, tokens: Sequence[int], progress: Progress) -> LevelStates:
    """Hidden states of tokens of a trace around a level.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        level: number of the level.
        tokens: indices of the tokens in the prompt.
        progress: receives what is being done; may raise to stop.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        return level_states(
            checkpoint.model, trace.prompt.token_ids, level, tokens, _replay(checkpoint, trace), progress
        )


def read_off_all(model: ModelSpec, trace: Trace, progress: Progress) -> Trace:
    """The trace with the confidence after every block.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt with its blocks.
        progress: receives what is being done; may raise to stop.
    """
    checkpoint, _ = model.load(progress)
    assert trace.blocks is not None
    with turn(model.device, progress):
        replay = _replay(checkpoint, trace)
        found = confidence(checkpoint.model, trace.prompt.token_ids, progress, replay)
    return replace(trace, blocks=replace(trace.blocks, confidence=found))


def explain(model: ModelSpec, trace: Trace, question: Question, progress: Progress, **options: Any) -> Attribution:
    """The contribution of each part of the prompt to a score or to the next token, with the edits of the trace.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        question: what to explain.
        progress: receives how far the method is; may raise to stop.
        **options: further arguments of `analysis.debug.attribution.attribute`.
    """
    edits = read_edits(trace.provenance.edits)
    override = EditOverride(edits, trace.prompt) if edits else None
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        return attribute(
            checkpoint.model, trace.prompt.token_ids, question, override=override, progress=progress, **options
        )


def attention(model: ModelSpec, trace: Trace, token: int, progress: Progress) -> np.ndarray:
    """(L, H, T) attention of one token; see `analysis.debug.attention.attention_of`.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        token: index of the token in the prompt.
        progress: receives what is being done; may raise to stop.
    """
    checkpoint, _ = model.load(progress)
    with turn(model.device, progress):
        return attention_of(checkpoint.model, trace.prompt.token_ids, token, _replay(checkpoint, trace), progress)
