"""Why: attribution of a score or of the next token, predictions after each block, and attention."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.attribution import Attribution
from analysis.debug.attribution_methods import Method
from analysis.debug.conductance import Conductance
from analysis.debug.contrast import Contrasted, decision
from analysis.debug.edits import read_edits
from analysis.debug.target import Baseline, Held, Question
from analysis.figures import debug as debug_figures
from analysis.figures.quoted import quoted
from analysis.figures.terms import common_word, level_name, level_words
from analysis.trace.token_classes import words_of
from app import engine, reproduce
from app.limits import Feature
from app.messages import ProgressBar, plain, plot, show_error, sortable
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import again
from app.views.boxes import one_of
from app.views.trace import text_and_map
from app.views.trace import token as token_view
from app.visitors import working
from subllm import SubllmError

_STRONGEST = 10  # tokens in a table
_NEXT = 0  # the next token among levels; a selector shows None as if nothing were chosen
_SLOW = (Method.ABLATION, Method.OCCLUSION)  # a forward pass for every token


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
        st.caption(say("why_edited"))
    _attribution(run, shown.selected, settings)
    token_view.show(run, shown, settings)
    _attention(run, shown.selected, settings)


def _attribution(run: Run, token: int, settings: Settings) -> None:
    """Explain a score or the next token; the result stays until the next one."""
    own, trace = session(), run.trace
    with st.form("why form", border=True):
        asked, texts, options = _form(trace, token, settings)
        pressed = st.form_submit_button(say("why_run"), type="primary", icon=":material/psychology:")
    progress = ProgressBar()
    if pressed:
        try:
            feature = Feature.ABLATION if options["method"] in _SLOW else None
            with working("attribution", settings, progress, feature) as work:
                found = engine.ask(run.recipe.model, trace, asked, *texts, work, **options)
            own.found["attribution"] = (trace.run, (options["method"], *found))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    if run.recipe.again:
        given = {name: options[name] for name in ("method", "held", "baseline", "steps")}
        given["words"] = options["groups"] is not None
        edits = read_edits(trace.provenance.edits)
        again.show(reproduce.explained(run.recipe, asked, texts, edits, **given))
    known = own.recall("attribution", trace.run)
    if known is not None:
        _results(trace, *known)


def _form(
    trace: Trace, token: int, settings: Settings
) -> tuple[tuple[int, int | None], tuple[str, str], dict[str, Any]]:
    """What is asked about, the texts of A and B, and options of the method."""
    words, prompt = table(language()), trace.prompt
    left, middle, right = st.columns(3)
    names = {_NEXT: say("why_next")}
    for level in trace.routing.levels:
        if trace.routing.scores_tokens(level):
            score = level_words(trace, level, words)["why_score"]
            names[level] = score.format(level=level_name(trace, level, words))
    asked = one_of(say("why_what"), list(names), names.__getitem__, "why what", place=left)
    answer = middle.text_input(
        say("why_answer"), help=say("why_answer_help"), key="why answer", persist_state="session"
    )
    instead = right.text_input(
        say("why_instead"), help=say("why_instead_help"), key="why instead", persist_state="session"
    )
    slow = Feature.ABLATION in settings.limits.features
    methods = [each for each in Method if slow or each not in _SLOW]
    method = one_of(say("why_method"), methods, lambda name: say(f"method_{name}"), "why method", place=left)
    held = one_of(
        say("why_held"), list(Held), lambda name: say(f"held_{name}"), "why held", place=middle, help=say("held_help")
    )
    baseline = one_of(
        say("why_baseline"), list(Baseline), lambda name: say(f"start_{name}"), "why baseline", place=right,
        help=say("why_baseline_help"),
    )  # fmt: skip
    merged = left.toggle(say("why_words"), help=say("why_words_help"), key="why words", persist_state="session")
    steps = middle.slider(
        say("why_steps"), 8, 128, 32, step=8, help=say("why_steps_help"), key="why steps", persist_state="session"
    )
    groups = words_of(prompt) if merged else None
    options = {"method": method, "held": held, "baseline": baseline, "groups": groups, "steps": steps}
    return (token, asked or None), (answer if asked == _NEXT else "", instead), options


def _results(trace: Trace, method: str, question: Question, found: Attribution, names: Contrasted) -> None:
    words = table(language())
    unit = say("why_unit_nats")
    if question.level is not None:
        unit = level_words(trace, question.level, words)["why_unit_score"]
    heading = say("why_this", this=quoted(names.this))
    if question.instead is not None:
        unit = say("why_unit_difference", unit=unit)
        heading = say("why_this_not_that", this=quoted(names.this), that=quoted(names.that))
    st.markdown(f"**{plain(heading)}**")
    if question.level is not None:
        _decisions(trace, question.level, question.tokens)
    st.caption(say("why_found", method=say(f"method_{method}"), n=f"{question.token:,}"))
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


def _decisions(trace: Trace, level: int, tokens: tuple[int, ...]) -> None:
    """A table of what a level decided about tokens, and by which scores."""
    words = level_words(trace, level, table(language()))
    rows, ranks = [], []
    for each in (decision(trace.routing, level, token) for token in tokens):
        state = token_view.state(trace, level, each.token)
        rows.append(
            {
                say("flip_token"): each.token,
                say("flip_text"): quoted(str(trace.prompt.pieces[each.token])),
                words["depth_score"]: each.score,
                say("depth_threshold"): each.threshold,
                say("depth_rank"): each.rank,
                say("depth_state"): state,
            }
        )
        ranks.append(f"{each.rank:,} / {each.reached:,}")
    forms = {
        say("flip_token"): ",",
        words["depth_score"]: "+.3f",
        say("depth_threshold"): "+.3f",
        say("depth_rank"): ranks,
    }
    st.dataframe(sortable(pd.DataFrame(rows), forms), hide_index=True)


def _past_levels(trace: Trace, found: Conductance) -> None:
    """A table of what bypassed each level, for dropped and for kept tokens, and of what the level added."""
    if not trace.routing.num_levels:
        return
    words = table(language())
    st.markdown(f"**{say('past_title')}**", help=common_word(trace, "past_help", words, "\n\n"))
    passed = [level for level in trace.routing.levels if not np.isnan(found.added[level - 1]).any()]
    if not passed:
        st.caption(say("past_none"))
        return
    names = {level: level_name(trace, level, words) for level in passed}
    kept = trace.routing.kept[:, : found.carried.shape[1]]
    parts = {
        "figure_unchanged_dropped": (found.carried * ~kept).sum(1),
        "figure_unchanged_kept": (found.carried * kept).sum(1),
        "figure_level_added": found.added.sum(1),
    }
    columns = {
        common_word(trace, name, words): [f"{part[level - 1]:+.4f}" for level in passed] for name, part in parts.items()
    }
    st.table(pd.DataFrame(columns, list(names.values())))
    level = one_of(say("edit_level"), list(names), names.__getitem__, "past level")
    plot(st, debug_figures.past_level(trace, found, level, words), "why past level")


def _attention(run: Run, token: int, settings: Settings) -> None:
    """What a token attends to, by its position in the prompt."""
    own, trace = session(), run.trace
    explained = common_word(trace, "attention_help", table(language()), "\n\n")
    st.subheader(say("attention_title"), help=explained)
    key = (trace.run, token)
    pressed = st.button(say("attention_run", n=f"{token:,}"), icon=":material/visibility:", key="attention run")
    progress = ProgressBar()
    if pressed:
        try:
            with working("attention", settings, progress) as work:
                own.found["attention"] = (key, engine.attention(run.recipe.model, trace, token, work))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    rows: np.ndarray | None = own.recall("attention", key)
    if rows is None:
        return
    names = [say("attention_mean"), *(say("attention_head", n=head) for head in range(rows.shape[1]))]
    chosen = one_of(say("attention_which"), range(len(names)), names.__getitem__, "attention head")
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
            say("flip_text"): quoted(str(trace.prompt.pieces[at])),
            say("attention_mean_blocks"): float(mean[at]),
        }
        for at in strongest
    ]
    forms = {say("flip_token"): ",", say("attention_mean_blocks"): ".1%"}
    st.dataframe(sortable(pd.DataFrame(shown), forms), hide_index=True)
