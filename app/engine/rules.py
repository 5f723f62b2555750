"""Other selection rules on the prompt of a trace."""

from collections.abc import Iterator

from analysis import Trace
from analysis.guard import Progress
from analysis.quality.rivals import Comparison
from analysis.quality.rivals import compare_rules as stages
from analysis.trace.tokenize import read_answer

from .models import ModelSpec
from .queue import turn
from .work import admit


def compare_rules(
    model: ModelSpec, trace: Trace, answer: str, progress: Progress, limit: int, *, oracle: bool
) -> Iterator[Comparison]:
    """The prompt of a trace under its own selection and under other rules, as they are run.

    Args:
        model: the model that made the trace.
        trace: trace of a prompt.
        answer: text whose probability after the prompt is measured.
        progress: receives how many passes are done; may raise to stop.
        limit: maximum number of tokens that the operator allows.
        oracle: also drop every token alone.

    Yields:
        As `analysis.quality.rivals.compare_rules`.

    Raises:
        PromptError: if the answer cannot be taken.
        AnalysisError: if there is nothing to compare, or the prompt is too long for the oracle.
    """
    checkpoint, dense = model.load(progress)
    most = min(limit, checkpoint.model.config.max_position_embeddings)
    answer_ids = read_answer(answer, checkpoint.tokenizer, most - trace.num_tokens)
    admit(progress, trace.num_tokens + len(answer_ids), texts=1)
    found = stages(checkpoint, dense, trace, answer_ids, oracle=oracle, progress=progress)
    while True:
        with turn(model.device, progress):  # no turn is held between batches, so that others can go first
            comparison = next(found, None)
        if comparison is None:
            return
        yield comparison
