"""Prompts whose unedited run is kept, and what edits to the routing change in them."""

from collections.abc import Iterator, Sequence

import streamlit as st

from analysis import Trace
from analysis.debug.edits import Edit
from analysis.debug.intervene import Outcome, UneditedRun, run_unedited, stages
from analysis.debug.search import Effects, estimate_effects, measure_effects
from analysis.guard import Progress
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import read_answer

from .models import ModelSpec, ModelStore
from .queue import turn
from .work import admit

_MOST = 2  # prompts that are kept with all that their prefill left on a device


@st.cache_resource(show_spinner=False)
def _unedited_runs() -> ModelStore[UneditedRun]:
    return ModelStore(_MOST)


def unedited_run(
    model: ModelSpec, prompt: Prompt, answer: str, progress: Progress, limit: int, answer_from: int = 0
) -> UneditedRun:
    """The run of a prompt and the answer without edits; made now if it is not kept.

    Args:
        model: that reads it.
        prompt: tokenised.
        answer: text whose probability is measured.
        progress: receives what is being done; may raise to stop.
        limit: maximum number of tokens that the operator allows.
        answer_from: as in `analysis.trace.parts.Provenance`.

    Raises:
        PromptError: if the answer cannot be taken.
    """
    checkpoint, _ = model.load(progress)
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    answer_ids = read_answer(answer, checkpoint.tokenizer, most - len(prompt))
    texts = (prompt.text, prompt.token_ids.tobytes(), answer_from, tuple(answer_ids))
    key = (id(checkpoint.model), model.checkpoint, *texts)
    unedited = _unedited_runs().values.get(key)
    if unedited is None:
        with turn(model.device, progress):
            unedited = _unedited_runs().values.get(key)  # by now, another user may have read it
            if unedited is None:
                admit(progress, len(prompt) + len(answer_ids), texts=1)
                _unedited_runs().values.make_room()
                unedited = run_unedited(checkpoint, prompt, answer_ids, model.checkpoint, progress, answer_from)
                _unedited_runs().put(key, unedited)
    return unedited


def edited(
    model: ModelSpec, trace: Trace, answer: str, edits: Sequence[Edit], progress: Progress, limit: int
) -> Iterator[Outcome]:
    """What edits change: first after the prompt, then at every position.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt without edits.
        answer: text whose probability is measured.
        edits: edits in force.
        progress: receives what is being done; may raise to stop.
        limit: maximum number of tokens that the operator allows.

    Yields:
        As `analysis.debug.intervene.stages`.

    Raises:
        PromptError: if the answer cannot be taken.
        AnalysisError: if an edit does not fit.
    """
    unedited = unedited_run(model, trace.prompt, answer, progress, limit, trace.provenance.answer_from)
    found = stages(unedited, edits, progress)
    while True:
        with turn(model.device, progress):  # no turn is held while a caller, who may be interrupted, draws
            outcome = next(found, None)
        if outcome is None:
            return
        yield outcome


def effects(
    model: ModelSpec, trace: Trace, answer: str, level: int, most: int, progress: Progress, limit: int
) -> Iterator[Effects]:
    """Single decisions by how much they change the answer's log-probability, as they are measured.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt without edits.
        answer: text whose probability is measured.
        level: number of the level.
        most: number of decisions to measure, those with the strongest estimates.
        progress: receives how many are done; may raise to stop.
        limit: maximum number of tokens that the operator allows.

    Yields:
        Effects; first the estimates alone.
    """
    unedited = unedited_run(model, trace.prompt, answer, progress, limit, trace.provenance.answer_from)
    with turn(model.device, progress):
        found: Effects | None = estimate_effects(unedited, level, progress)
    assert found is not None
    measured = measure_effects(unedited, found, found.order()[:most].tolist(), progress)
    while found is not None:
        yield found
        with turn(model.device, progress):
            found = next(measured, None)
