"""Why: attribution of a score or of the next token, predictions after each block, and attention."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.attribution import Attribution
from analysis.debug.attribution_methods import Method
from analysis.debug.conductance import Conductance
from analysis.debug.target import Baseline, Held, Question
from analysis.figures import debug as debug_figures
from analysis.figures import trace as figures
from analysis.trace.token_classes import words_of
from app import engine
from app.messages import ProgressBar, plot, show_error
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views.trace import text_and_map, token
from subllm import SubllmError

_STRONGEST = 10  # tokens in a table


def show(run: Run, settings: Settings) -> None:
    """The tab."""
    trace = run.trace
    st.caption(say("why_help"))
    shown = text_and_map.show(trace, key="why view")
    if shown.selected is None:
        st.info(say("why_select"), icon=":material/touch_app:")
        return
    st.subheader(say("why_token", n=f"{shown.selected:,}"))
    if trace.provenance.edits:
        st.info(say("why_edited"), icon=":material/edit_off:")
    else:
        _attribution(run, shown.selected)
    token.show(run, shown)
    _attention(run, shown.selected)


def _attribution(run: Run, token: int) -> None:
    """Explain a score or the next token; the result stays until the next one."""
    own, trace = session(), run.trace
    with st.form("why form", border=True):
        question, options = _form(trace, token)
        pressed = st.form_submit_button(say("why_run"), type="primary", icon=":material/psychology:")
    progress = ProgressBar("stop why")
    if pressed:
        try:
            with progress:
                found = engine.explain(run.recipe.model, trace, question, progress, **options)
            own.found["attribution"] = (trace.run, (question, options["method"], found))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    known = own.recall("attribution", trace.run)
    if known is not None:
        _results(trace, *known)


def _form(trace: Trace, token: int) -> tuple[Question, dict[str, Any]]:
    words, prompt = table(language()), trace.prompt
    left, middle, right = st.columns(3)
    names: dict[int | None, str] = {None: say("why_next")}
    for level in trace.routing.levels:
        if trace.routing.scores_tokens(level):
            names[level] = say("why_score", level=figures.level_name(trace, level, words))
    asked = left.selectbox(say("why_what"), list(names), format_func=names.__getitem__)
    method = middle.selectbox(say("why_method"), list(Method), format_func=lambda name: say(f"method_{name}"))
    held = right.selectbox(
        say("why_held"), list(Held), format_func=lambda name: say(f"held_{name}"), help=say("held_help")
    )
    baseline = left.selectbox(
        say("why_baseline"),
        list(Baseline),
        format_func=lambda name: say(f"start_{name}"),
        help=say("why_baseline_help"),
    )
    merged = middle.toggle(say("why_words"), help=say("why_words_help"))
    steps = right.slider(say("why_steps"), 8, 128, 32, step=8, help=say("why_steps_help"))
    groups = words_of(prompt) if merged else None
    options = {"method": method, "held": held, "baseline": baseline, "groups": groups, "steps": steps}
    return Question(token, asked), options


def _results(trace: Trace, question: Question, method: str, found: Attribution) -> None:
    words = table(language())
    unit = say("why_unit_score" if question.level is not None else "why_unit_nats")
    st.markdown(f"**{say('why_found', method=say(f'method_{method}'), n=f'{question.token:,}')}**")
    plot(st, debug_figures.contributions(trace, found, words), "why contributions")
    st.caption(
        say(
            "why_sum",
            unit=unit,
            value=f"{found.value:.4f}",
            baseline=f"{found.baseline:.4f}",
            delta=f"{found.delta:+.4f}",
            seconds=f"{found.seconds:,.1f}",
        )
    )
    if method in ("integrated gradients", "conductance") and abs(found.delta) > 0.1 * abs(found.value - found.baseline):
        st.warning(say("why_off"))
    if found.conductance is not None:
        plot(st, debug_figures.through_blocks(found.conductance, words), "why blocks")
        st.caption(say("why_blocks_help"))
        _past_levels(trace, found.conductance)


def _past_levels(trace: Trace, found: Conductance) -> None:
    """A table of what bypassed each level, for dropped and for kept tokens, and of what the level added."""
    words = table(language())
    names = {level: figures.level_name(trace, level, words) for level in trace.routing.levels}
    if not names:
        return
    st.markdown(f"**{say('past_title')}**", help=say("past_help"))
    kept = trace.routing.kept[:, : found.carried.shape[1]]
    parts = {
        "figure_unchanged_dropped": (found.carried * ~kept).sum(1),
        "figure_unchanged_kept": (found.carried * kept).sum(1),
        "figure_level_added": found.added.sum(1),
    }
    columns = {words[name]: [f"{value:+.4f}" for value in part] for name, part in parts.items()}
    st.table(pd.DataFrame(columns, list(names.values())))
    level = st.selectbox(say("edit_level"), list(names), format_func=names.__getitem__, key="past level")
    plot(st, debug_figures.past_level(trace, found, level, words), "why past level")


def _attention(run: Run, token: int) -> None:
    """What a token attends to, by its position in the prompt."""
    own, trace = session(), run.trace
    st.subheader(say("attention_title"), help=say("attention_help"))
    key = (trace.run, token)
    pressed = st.button(say("attention_run", n=f"{token:,}"), icon=":material/visibility:")
    progress = ProgressBar("stop attention")
    if pressed:
        try:
            with progress:
                own.found["attention"] = (key, engine.attention(run.recipe.model, trace, token, progress))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    rows: np.ndarray | None = own.recall("attention", key)
    if rows is None:
        return
    names = [say("attention_mean"), *(say("attention_head", n=head) for head in range(rows.shape[1]))]
    chosen = st.selectbox(say("attention_which"), range(len(names)), format_func=names.__getitem__)
    values = rows.mean(1) if chosen == 0 else rows[:, chosen - 1]
    plot(st, debug_figures.attention(trace, values, table(language())), "attention")
    processed = values[~np.isnan(values).all(1)]
    if not len(processed):
        return
    mean = processed.mean(0)
    strongest = [int(at) for at in np.argsort(-mean)[:_STRONGEST] if mean[at] > 0]
    shown = [
        {
            say("flip_token"): at,
            say("flip_text"): trace.prompt.pieces[at],
            say("attention_mean_blocks"): f"{mean[at]:.1%}",
        }
        for at in strongest
    ]
    st.dataframe(pd.DataFrame(shown), hide_index=True)
