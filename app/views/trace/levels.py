"""Statistics of a run's levels, and the most likely continuation."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from analysis import Trace
from analysis.figures import summary
from analysis.figures import trace as figures
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import level_name, level_words, router_name
from analysis.trace.statistics import rule_overlap
from app.messages import plain, plot
from app.strings import language, say, table
from app.views import boxes


def show(trace: Trace, shown: Shown) -> None:
    """Distributions of the chosen level, one tab at a time; what its router does not have is left out, and why."""
    routing, level = trace.routing, shown.level
    words = table(language())
    own = level_words(trace, level, words)
    st.caption(say("level_here", level=level_name(trace, level, words)))
    views: dict[str, Callable[[], None]] = {"overview": lambda: _overview(trace)}
    if routing.scores_tokens(level):
        views["scores"] = lambda: _scores(trace, level)
    else:
        st.caption(plain(no_scores(trace, level)))
    if not np.isnan(routing.contribution_norm[level - 1]).all():
        views["bypass"] = lambda: _figure(
            figures.bypass_contribution(trace, level, words), "bypass", own["bypass_help"]
        )
        views["share"] = lambda: _figure(figures.processed_share(trace, level, words), "share", own["share_help"])
    elif routing.reached[level - 1].any():
        st.caption(say("no_contribution", level=level_name(trace, level, words)))
    if not routing.merges[level - 1]:  # whose groups are all alike
        views["runs"] = lambda: _figure(figures.kept_runs(trace, level, words), "runs", own["runs_help"])
    views["blocks"] = lambda: _figure(figures.tokens_per_block(trace, words), "blocks", say("blocks_help"))
    if any(routing.bypassed):
        views["scales"] = lambda: _figure(figures.bypass_scales(trace, words), "scales", say("scales_help"))
    if not routing.bypassed[level - 1]:
        st.caption(plain(no_bypass(trace, level)))
    boxes.in_tabs({name: (own[f"tab_{name}"], view) for name, view in views.items()}, "statistics")


def _figure(figure: go.Figure, name: str, explained: str) -> None:
    plot(st, figure, name)
    st.caption(explained)


def no_scores(trace: Trace, level: int) -> str:
    """The message for a level whose router does not score tokens.

    Args:
        trace: trace of a prompt.
        level: whose router does not score.
    """
    return _without("no_scores", trace, level)


def no_bypass(trace: Trace, level: int) -> str:
    """The message for a level without a bypass.

    Args:
        trace: trace of a prompt.
        level: that has no bypass.
    """
    return _without("no_bypass", trace, level)


def _without(key: str, trace: Trace, level: int) -> str:
    words = table(language())
    name = level_name(trace, level, words)
    router = router_name(str(trace.routing.routers[level - 1]), words)
    return level_words(trace, level, words)[key].format(level=name, router=router)


def _scores(trace: Trace, level: int) -> None:
    """The scores of a level, and how its kept tokens differ from those of the training rule."""
    words = table(language())
    plot(st, figures.score_histogram(trace, level, words), "histogram")
    rules = rule_overlap(trace.routing, level)
    st.caption(
        level_words(trace, level, words)["rules"].format(
            kept=f"{rules.kept:,}",
            share=f"{trace.routing.retention_ratios[level - 1]:.0%}",
            highest=f"{rules.highest:,}",
            overlap=f"{rules.overlap:.0%}",
            differing=f"{len(rules.differing):,}",
        )
    )


def _overview(trace: Trace) -> None:
    """Kept and merged tokens of every level, and their overlap with those of the training rule."""
    st.table(summary.level_table(trace, table(language())))
    if any(trace.routing.scored):
        st.caption(say("overview_help"))


def continuation(trace: Trace, *, unfinished: bool = False) -> None:
    """The most likely next tokens, and the greedy continuation.

    Args:
        trace: trace of a prompt.
        unfinished: whether the run ended before its continuation did.
    """
    left, right = st.columns(2)
    with left:
        st.caption(say("next_tokens"))
        _next_tokens(trace)
    with right:
        _continuation(trace, unfinished=unfinished)


def _next_tokens(trace: Trace) -> None:
    if trace.predictions is None:
        st.text(say("unmeasured"))
        return
    found = pd.DataFrame(summary.next_tokens(trace), columns=[say("token"), say("probability")])
    bar = st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
    st.dataframe(found, hide_index=True, height="content", column_config={say("probability"): bar})


def _continuation(trace: Trace, *, unfinished: bool) -> None:
    found = trace.continuation
    if found is None:
        st.caption(say("continuation_title"), help=say("continuation_help"))
        st.text(say("continuation_none"))
        return
    st.caption(say("continuation", n=len(found.ids)), help=say("continuation_help"))
    st.text(found.text)
    if unfinished:
        st.caption(say("continuation_unfinished", n=len(found.ids)))
    if kept := summary.new_tokens(trace, table(language())):
        st.caption(kept)
