"""Compare rules: the learned selection beside simple ones on the same prompt, at the same shares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from analysis import AnalysisError, Trace
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import level_name, stopping_level
from analysis.quality.paired import Interval
from analysis.quality.rivals import FEWEST_TOKENS, Comparison, Outcome, Row, oracle_passes, passes, replaceable
from analysis.quality.selection_rules import SelectionRule
from analysis.trace.parts import Routing
from app import engine
from app.components.rules_view import Bar, rules_view
from app.limits import Feature
from app.messages import ProgressBar, plain, show_error, sortable
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import chooser, elsewhere
from app.visitors import working
from subllm import SubllmError

_MOST_SHOWN = 600  # tokens with their bars


def show(run: Run, shown: Shown, settings: Settings) -> None:
    """The comparison, on demand, since it runs the prompt a dozen times.

    Args:
        run: that is shown.
        shown: what the text and map show of it.
        settings: what the operator allows.
    """
    own, trace = session(), run.trace
    levels = replaceable(trace.routing)
    if not levels:
        st.info(say("rivals_none"))
        return
    if elsewhere.model_absent(run):
        return
    answer = _answer(run)
    count, further = passes(trace), oracle_passes(trace)
    oracle = False
    if further and Feature.ABLATION in settings.limits.features:
        oracle = st.toggle(
            say("rivals_oracle", n=f"{further:,}"), key="rivals oracle", help=say("rivals_oracle_help"),
            persist_state="session",
        )  # fmt: skip
    else:
        st.caption(say("rivals_oracle_none"))
    pressed = st.button(
        say("rivals_run", n=f"{count + further * oracle:,}"),
        icon=":material/compare_arrows:",
        help=say("rivals_run_help"),
        key="rivals",
    )
    progress = ProgressBar()
    key = (trace.run, answer, oracle)
    if pressed:
        try:
            with working("rivals", settings, progress, Feature.ABLATION if oracle else None) as work:
                limit = settings.limits.tokens
                for found in engine.compare_rules(run.recipe.model, trace, answer, work, limit, oracle=oracle):
                    comparison = found
            own.found["rivals"] = (key, comparison)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    known: Comparison | None = own.recall("rivals", key)
    if known is not None:
        _results(trace, known, shown)


def _answer(run: Run) -> str:
    """The text that should follow the prompt; that of the example, if the prompt is one that has it."""
    known = {entry["text"]: entry.get("answer", "") for entry in chooser.examples().values()}
    own = session()
    return st.text_input(
        say("rivals_answer"),
        known.get(run.recipe.text) or own.answer,
        key=f"rivals answer {run.trace.subject}",
        help=say("rivals_answer_help"),
        persist_state="session",
    )


def _results(trace: Trace, found: Comparison, shown: Shown) -> None:
    st.info(plain(_verdict(found)), icon=":material/balance:")
    rows = found.table()
    st.dataframe(_table(rows, found), hide_index=True, placeholder="–", height="content")
    words = table(language())
    dense = say("rivals_dense", dense=say(f"dense_{found.reference}"), loss=_loss(found))
    if found.answer_tokens:
        dense += " " + say("rivals_dense_answer", probability=f"{np.exp(found.dense_answer):.1%}")
    st.caption(plain(dense))
    st.caption(say("rivals_note"))
    others = [level for level in trace.routing.levels if level not in found.levels]
    if others:
        names = say("comma").join(level_name(trace, level, words) for level in others)
        st.caption(plain(say("rivals_left_out", levels=names)))
    _kept(trace, found, shown.level if shown.level in found.levels else found.levels[0], rows)
    st.download_button(
        say("rivals_save"),
        lambda: found.tokens().to_csv(index=False).encode(),
        "rules.csv",
        icon=":material/download:",
        on_click="ignore",
    )


def _loss(found: Comparison) -> str:
    known = found.dense_surprisal[1:]
    return f"{known.mean():.3f}" if len(known) else "–"


def _verdict(found: Comparison) -> str:
    verdict = found.verdict()
    if verdict.outcome == Outcome.SHORT:
        return say("rivals_short", n=f"{len(found.prompt):,}", most=FEWEST_TOKENS)
    mean, low, high = verdict.difference
    if verdict.outcome == Outcome.WORSE:
        mean, low, high = -mean, -high, -low
    sign = "+" if verdict.outcome == Outcome.OPEN else ""  # the other sentences say "higher" or "lower"
    return say(
        f"rivals_{verdict.outcome}",
        rule=_name(verdict.rule),
        mean=f"{mean:{sign}.3f}",
        low=f"{low:{sign}.3f}",
        high=f"{high:{sign}.3f}",
    )


def _table(rows: Sequence[Row], found: Comparison) -> Styler:
    """A line for every rule."""
    columns: dict[str, list[Any]] = {
        say("rivals_rule"): [_full_name(row) for row in rows],
        say("rivals_loss"): [row.loss for row in rows],
        say("rivals_difference"): [row.difference.mean for row in rows],
        say("rivals_shared"): [row.shared for row in rows],
        say("rivals_agreement"): [row.agreement for row in rows],
        say("rivals_divergence"): [row.divergence for row in rows],
    }
    forms: dict[str, str | list[str]] = {
        say("rivals_loss"): ".3f",
        say("rivals_difference"): [_interval(row.difference) for row in rows],
        say("rivals_shared"): ".0%",
        say("rivals_agreement"): ".0%",
        say("rivals_divergence"): ".3f",
    }
    if found.answer_tokens:
        columns[say("rivals_probability")] = [float(np.exp(row.answer)) for row in rows]
        columns[say("rivals_found")] = [float(row.found) for row in rows]
        forms[say("rivals_probability")] = ".1%"
        forms[say("rivals_found")] = [
            f"{row.found:.0%}" if row.draws > 1 else say("rivals_yes" if row.found else "rivals_no") for row in rows
        ]
    return sortable(pd.DataFrame(columns), forms)


def _full_name(row: Row) -> str:
    name = _name(row.rule)
    if row.own_weights:
        return say("rivals_own_weights", rule=name)
    return say("rivals_draws", rule=name, n=row.draws) if row.draws > 1 else name


def _interval(difference: Interval) -> str:
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _name(rule: SelectionRule) -> str:
    return say(f"rule_{rule}")


def _kept(trace: Trace, found: Comparison, level: int, rows: list[Row]) -> None:
    """The kept tokens of every rule under the same text, in the order of the table."""
    st.markdown(f"**{say('rivals_kept', level=level_name(trace, level, table(language())))}**")
    tokens = range(trace.num_tokens)
    if len(tokens) > _MOST_SHOWN:
        last = len(tokens) - _MOST_SHOWN
        first = st.slider(say("rivals_from"), 0, last, key=f"rivals from {trace.subject}")
        tokens = range(first, first + _MOST_SHOWN)
    bars = []
    for row in rows:
        if not row.own_weights:
            name = say("rivals_draw", rule=_name(row.rule)) if row.draws > 1 else _name(row.rule)
            bars.append(_bar(name, trace.routing, level, found.of(row.rule)[0].kept))
    states = {state: say(f"view_{state}State") for state in ("kept", "dropped", "absent", "absentMerged")}
    rules_view(trace.prompt, bars, tokens, states, key="rules view")
    st.caption(say("rivals_kept_help"))


def _bar(name: str, routing: Routing, level: int, kept: np.ndarray) -> Bar:
    """The bar of a rule under which every level keeps the tokens `kept`, (S, T)."""
    everything = np.ones((1, kept.shape[1]), dtype=bool)
    reached = np.concatenate([everything, kept])[routing.parents]
    stopping = [stopping_level(routing, level, token) for token in reached.T.tolist()]
    return Bar(name, kept[level - 1], reached[level - 1], merged=routing.merges[np.asarray(stopping) - 1])
