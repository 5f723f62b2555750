"""Statistics of a run's levels, and the most likely continuation."""

import pandas as pd
import streamlit as st

from analysis import Trace
from analysis.figures import trace as figures
from analysis.trace.statistics import rule_overlap
from app.components.routing_view import Shown
from app.messages import plain, plot
from app.strings import language, say, table


def show(trace: Trace, shown: Shown) -> None:
    """Distributions of the chosen level, one tab at a time."""
    words, level = table(language()), shown.level
    st.caption(say("level_here", level=figures.level_name(trace, level, words)))
    names = [say(f"tab_{name}") for name in ("overview", "scores", "bypass", "share", "runs", "scales", "blocks")]
    tabs = st.tabs(names, on_change="rerun", key="statistics")  # only the open one is drawn
    overview, scores, bypass, share, lengths, scales, blocks = tabs
    if overview.open:
        overview.table(_overview(trace))
        overview.caption(say("overview_help"))
    if scores.open:
        with scores:
            _scores(trace, level)
    if bypass.open:
        plot(bypass, figures.bypass_contribution(trace, level, words), "bypass")
        bypass.caption(say("bypass_help"))
    if share.open:
        plot(share, figures.processed_share(trace, level, words), "share")
        share.caption(say("share_help"))
    if lengths.open:
        plot(lengths, figures.kept_runs(trace, level, words), "runs")
        lengths.caption(say("runs_help"))
    if scales.open:
        plot(scales, figures.bypass_scales(trace, words), "scales")
        scales.caption(say("scales_help"))
    if blocks.open:
        plot(blocks, figures.tokens_per_block(trace, words), "blocks")
        blocks.caption(say("blocks_help"))


def no_scores(trace: Trace, level: int) -> str:
    """The message for a level whose router does not score tokens.

    Args:
        trace: trace of a prompt.
        level: whose router does not score.
    """
    name = figures.level_name(trace, level, table(language()))
    return say("no_scores", level=name, router=str(trace.routing.routers[level - 1]))


def _scores(trace: Trace, level: int) -> None:
    """The scores of a level, and how its kept tokens differ from those of the training rule."""
    if not trace.routing.scores_tokens(level):
        st.info(plain(no_scores(trace, level)))
        return
    plot(st, figures.score_histogram(trace, level, table(language())), "histogram")
    rules = rule_overlap(trace.routing, level)
    st.caption(
        say(
            "rules",
            kept=f"{rules.kept:,}",
            share=f"{trace.routing.retention_ratios[level - 1]:.0%}",
            highest=f"{rules.highest:,}",
            overlap=f"{rules.overlap:.0%}",
            differing=f"{len(rules.differing):,}",
        )
    )


def _overview(trace: Trace) -> pd.DataFrame:
    """Kept tokens of every level, and their overlap with those of the training rule."""
    rows, routing = {}, trace.routing
    for level in routing.levels:
        row = level - 1
        reached, kept = int(routing.reached[row].sum()), int(routing.kept[row].sum())
        overlap = f"{rule_overlap(routing, level).overlap:.0%}" if routing.scores_tokens(level) else "–"
        rows[figures.level_name(trace, level, table(language()))] = {
            say("overview_reached"): f"{reached:,}",
            say("overview_kept"): f"{kept:,}",
            say("overview_share"): f"{kept / reached:.1%}" if reached else "–",
            say("overview_nominal"): f"{routing.retention_ratios[row]:.1%}",
            say("overview_overlap"): overlap,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def continuation(trace: Trace) -> None:
    """The most likely next tokens, and the greedy continuation."""
    left, right = st.columns(2)
    with left:
        st.caption(say("next_tokens"))
        _next_tokens(trace)
    with right:
        _continuation(trace)


def _next_tokens(trace: Trace) -> None:
    found = trace.predictions
    if found is None:
        st.text(say("unmeasured"))
        return
    columns = {
        say("token"): [repr(str(piece)) for piece in found.next_pieces],
        say("probability"): found.next_probabilities,
    }
    bar = st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
    st.dataframe(pd.DataFrame(columns), hide_index=True, height="content", column_config={say("probability"): bar})


def _continuation(trace: Trace) -> None:
    found = trace.continuation
    if found is None:
        st.caption(say("continuation_title"), help=say("continuation_help"))
        st.text(say("continuation_none"))
        return
    words, count = table(language()), len(found.ids)
    st.caption(say("continuation", n=count), help=say("continuation_help"))
    st.text(found.text)
    if trace.routing.num_levels:
        kept = [
            say("labelled", label=figures.level_name(trace, level, words), value=f"{found.kept[level - 1].sum():,}")
            for level in trace.routing.levels
        ]
        st.caption(say("new_kept", n=count) + " " + say("comma").join(kept))
