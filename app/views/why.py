"""Why: what made a score, or the next token, what it is; what each block predicts; what a token attends to."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace, debug_figures, figures
from analysis.attribution import METHODS, Attribution, words_of
from analysis.explained import BASELINES, HELD, Question
from analysis.flow import Flow
from app import runs
from app.components.routing_view import Shown, routing_view
from app.messages import ProgressBar, plot, show_error
from app.settings import Settings
from app.strings import language, say, table
from app.views import token
from subllm import SubllmError


def show(trace: Trace, source: runs.Source, settings: Settings) -> None:
    """The tab.

    Args:
        trace: of the prompt.
        source: of the trace.
        settings: what the operator allows.
    """
    words = table(language())
    st.caption(say("why_help"))
    shown = routing_view(trace, Shown.parse(st.session_state.get("why shown"), trace), words, key="why view")
    st.session_state["why shown"] = vars(shown)
    if shown.selected < 0:
        st.info(say("why_select"), icon=":material/touch_app:")
        return
    st.subheader(say("why_token", n=f"{shown.selected:,}"))
    with st.form("why form", border=True):
        question, options = _form(trace, shown)
        pressed = st.form_submit_button(say("why_run"), type="primary", icon=":material/psychology:")
    if pressed:
        try:
            with ProgressBar("stop why") as progress:
                found = runs.explain(source, trace, question, progress, **options)
            st.session_state["why result"] = (trace.digest, question, options["method"], found)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    digest, asked, method, found = st.session_state.get("why result", (None, None, None, None))
    if digest == trace.digest and found is not None:
        _results(trace, asked, method, found)
    token.show(trace, source, shown)
    _attention(trace, source, shown)


def _form(trace: Trace, shown: Shown) -> tuple[Question, dict[str, object]]:
    words = table(language())
    left, middle, right = st.columns(3)
    names = [say("why_next")] + [
        say("why_score", level=figures.level_name(trace, span, words)) for span in range(trace.num_spans)
    ]
    what = left.selectbox(say("why_what"), range(len(names)), format_func=names.__getitem__)
    method = middle.selectbox(say("why_method"), METHODS, format_func=lambda name: say(f"method_{name}"))
    held = right.selectbox(say("why_held"), HELD, format_func=lambda name: say(f"held_{name}"), help=say("held_help"))
    baseline = left.selectbox(
        say("why_baseline"), BASELINES, format_func=lambda name: say(f"start_{name}"), help=say("why_baseline_help")
    )
    merged = middle.toggle(say("why_words"), help=say("why_words_help"))
    steps = right.slider(say("why_steps"), 8, 128, 32, step=8, help=say("why_steps_help"))
    groups = words_of(trace.prompt, trace.starts.tolist(), trace.ends.tolist()) if merged else None
    options: dict[str, object] = {
        "method": method,
        "held": held,
        "baseline": baseline,
        "groups": groups,
        "steps": steps,
    }
    return Question(shown.selected, what - 1), options


def _results(trace: Trace, question: Question, method: str, found: Attribution) -> None:
    words = table(language())
    unit = say("why_unit_score" if question.span >= 0 else "why_unit_nats")
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
    if found.flow is not None:
        plot(st, debug_figures.through_blocks(found.flow, words), "why blocks")
        st.caption(say("why_blocks_help"))
        _past_levels(trace, found.flow)


def _past_levels(trace: Trace, flow: Flow) -> None:
    """What came past each level: unchanged, by dropped and by kept tokens, and what the level added."""
    words = table(language())
    names = [figures.level_name(trace, span, words) for span in range(trace.num_spans)]
    if not names:
        return
    st.markdown(f"**{say('past_title')}**", help=say("past_help"))
    kept = trace.kept[:, : flow.carried.shape[1]]
    parts = {
        "figure_unchanged_dropped": (flow.carried * ~kept).sum(1),
        "figure_unchanged_kept": (flow.carried * kept).sum(1),
        "figure_level_added": flow.added.sum(1),
    }
    st.table(pd.DataFrame({words[name]: [f"{value:+.4f}" for value in part] for name, part in parts.items()}, names))
    span = st.selectbox(say("edit_level"), range(len(names)), format_func=names.__getitem__, key="past level")
    plot(st, debug_figures.past_level(trace, flow, span, words), "why past level")


def _attention(trace: Trace, source: runs.Source, shown: Shown) -> None:
    """What the selected token attends to, mapped back to the prompt."""
    st.subheader(say("attention_title"), help=say("attention_help"))
    key = (trace.digest, shown.selected)
    if st.button(say("attention_run", n=f"{shown.selected:,}"), icon=":material/visibility:"):
        try:
            st.session_state["attention rows"] = (key, runs.attention(source, trace, shown.selected))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    if st.session_state.get("attention rows", (None,))[0] != key:
        return
    rows: np.ndarray = st.session_state["attention rows"][1]
    names = [say("attention_mean"), *(say("attention_head", n=head) for head in range(rows.shape[1]))]
    chosen = st.selectbox(say("attention_which"), range(len(names)), format_func=names.__getitem__)
    values = rows.mean(1) if chosen == 0 else rows[:, chosen - 1]
    plot(st, debug_figures.attention(trace, values, table(language())), "attention")
    if np.isnan(values).all():
        return
    mean = np.nan_to_num(np.nanmean(values, axis=0))
    strongest = np.argsort(-mean)[:10]
    rows_shown = [
        {
            say("flip_token"): int(at),
            say("flip_text"): trace.pieces[at],
            say("attention_mean_blocks"): f"{mean[at]:.1%}",
        }
        for at in strongest
        if mean[at] > 0
    ]
    st.dataframe(pd.DataFrame(rows_shown), hide_index=True)
