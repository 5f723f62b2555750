"""Questions as visitors write them: why A and not B."""

from typing import Any

from analysis import Trace
from analysis.debug.attribution import Attribution
from analysis.debug.contrast import Contrasted, question_of
from analysis.debug.target import Question
from analysis.guard import Progress

from .models import ModelSpec
from .runs import explain


def ask(
    model: ModelSpec,
    trace: Trace,
    asked: tuple[int, int | None],
    answer: str,
    instead: str,
    progress: Progress,
    **options: Any,
) -> tuple[Question, Attribution, Contrasted]:
    """What made a score or the next token what it is, and not another.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        asked: a token of the prompt, and the level whose score of it is explained; None explains the next token.
        answer: see `analysis.debug.contrast.question_of`.
        instead: see `analysis.debug.contrast.question_of`.
        progress: receives how far the method is; may raise to stop.
        **options: further arguments of `analysis.debug.attribution.attribute`.

    Returns:
        The question, its answer, and readable texts of what it is about.

    Raises:
        AnalysisError: if it cannot be asked.
        PromptError: if a text cannot be encoded.
    """
    checkpoint, _ = model.load(progress)
    token, level = asked
    question = question_of(token, level, checkpoint.tokenizer, answer, instead)
    found = explain(model, trace, question, progress, **options)
    return question, found, Contrasted.of(question, found.answer, trace.prompt, checkpoint.tokenizer)
