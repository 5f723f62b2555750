"""States of one prompt, put into the run of another."""

from dataclasses import dataclass

from analysis import Trace
from analysis.debug.patching import Patched, patch_levels
from analysis.guard import Progress
from analysis.trace.tokenize import read_prompt

from .queue import turn
from .runs import Recipe
from .what_if import unedited_run


@dataclass(frozen=True)
class Place:
    """What is put where.

    Attributes:
        token: token of the run whose state is replaced.
        other: the other prompt, as typed; it goes through the chat template if the run's prompt does.
        source: token of the other prompt.
    """

    token: int
    other: str
    source: int


def patched(
    recipe: Recipe, trace: Trace, place: Place, answer: str, progress: Progress, limit: int
) -> tuple[Trace, list[Patched]]:
    """The run of the other prompt, and the patched runs: one for every level that both tokens reach.

    Args:
        recipe: of the run that is patched.
        trace: of that run, without edits.
        place: what is put where.
        answer: text whose probability is measured.
        progress: receives what is being done; may raise to stop.
        limit: maximum number of tokens that the operator allows.

    Raises:
        PromptError: if the other prompt or the answer cannot be taken.
        AnalysisError: if there is no such token, or the model has no levels.
        RunStopped: at a limit.
    """
    model = recipe.model
    checkpoint, _ = model.load(progress)
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    prompt = read_prompt(place.other, checkpoint.tokenizer, most, chat=recipe.chat)
    run = unedited_run(model, trace.prompt, answer, progress, limit, trace.provenance.answer_from)
    other = unedited_run(model, prompt, "", progress, limit)
    with turn(model.device, progress):
        return other.trace, list(patch_levels(run, other, place.token, place.source, progress))
