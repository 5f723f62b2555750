"""What a model wrote, read back with its prompt as one run; and what is said about such a run."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from analysis import AnalysisError, Prompt, Trace
from analysis.debug.edits import Edit
from analysis.figures.terms import level_name
from app import engine
from app.messages import ProgressBar, show_error
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.visitors import working
from subllm import SubllmError


def offer(run: Run, prompt: Prompt, ids: Sequence[int], edits: Sequence[Edit], settings: Settings) -> None:
    """A button that opens prompt and answer as one run; none where there is no model, or no answer.

    Args:
        run: that was continued.
        prompt: what was continued.
        ids: (N,) ids of the answer.
        edits: that it was generated under.
        settings: what the operator allows.
    """
    if not len(ids) or not run.has_model:
        return
    pressed = st.button(say("answer_run"), icon=":material/join:", help=say("answer_run_help"), key="answer run")
    progress = ProgressBar()
    if not pressed:
        return
    try:
        with working("answer", settings, progress) as work:
            trace, recipe = engine.run_with_answer(
                run.recipe, run.trace, prompt, ids, edits, work, limit=settings.limits.tokens
            )
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    session().remember(trace, recipe)
    st.rerun()


def show(trace: Trace) -> None:
    """Where the answer begins, and what each level kept of prompt and answer; nothing of other runs.

    Args:
        trace: trace of a prompt.
    """
    first, routing = trace.provenance.answer_from, trace.routing
    if not first:
        return
    st.caption(say("answer_from", first=f"{first:,}", last=f"{trace.num_tokens - 1:,}"))
    rows = {}
    for level in routing.levels:
        kept, reached = routing.kept[level - 1], routing.reached[level - 1]
        parts = {say("answer_prompt"): slice(0, first), say("answer_answer"): slice(first, None)}
        rows[level_name(trace, level, table(language()))] = {
            name: f"{kept[part].sum():,} / {reached[part].sum():,}" for name, part in parts.items()
        }
    if rows:
        st.table(pd.DataFrame.from_dict(rows, orient="index"))
