"""The levels of a run as statistics, and what the model would say next."""

import pandas as pd
import streamlit as st

from analysis import Trace, figures
from analysis.statistics import rule_overlap
from app.components.routing_view import Shown
from app.messages import plot
from app.strings import language, say, table


def show(trace: Trace, shown: Shown) -> None:
    """Distributions of the chosen level, one tab at a time.

    Args:
        trace: of a prompt.
        shown: in the browser.
    """
    words, span = table(language()), shown.level
    st.caption(say("level_here", level=figures.level_name(trace, span, words)))
    names = [say(f"tab_{name}") for name in ("overview", "scores", "bypass", "share", "runs", "scales", "blocks")]
    tabs = st.tabs(names, on_change="rerun", key="statistics")  # only the open one is drawn
    overview, scores, bypass, share, lengths, scales, blocks = tabs
    if overview.open:
        overview.table(_overview(trace))
        overview.caption(say("overview_help"))
    if scores.open:
        plot(scores, figures.score_histogram(trace, span, words), "histogram")
        rules = rule_overlap(trace, span)
        scores.caption(
            say(
                "rules",
                threshold=f"{rules.by_threshold:,}",
                share=f"{trace.retention_ratios[span]:.0%}",
                rank=f"{rules.by_rank:,}",
                overlap=f"{rules.overlap:.0%}",
                differing=f"{len(rules.differing):,}",
            )
        )
    if bypass.open:
        plot(bypass, figures.bypass_contribution(trace, span, words), "bypass")
        bypass.caption(say("bypass_help"))
    if share.open:
        plot(share, figures.processed_share(trace, span, words), "share")
        share.caption(say("share_help"))
    if lengths.open:
        plot(lengths, figures.kept_runs(trace, span, words), "runs")
        lengths.caption(say("runs_help"))
    if scales.open:
        plot(scales, figures.bypass_scales(trace, words), "scales")
        scales.caption(say("scales_help"))
    if blocks.open:
        plot(blocks, figures.tokens_per_block(trace, words), "blocks")
        blocks.caption(say("blocks_help"))


def _overview(trace: Trace) -> pd.DataFrame:
    """Kept tokens of every level, and how far the rule of training would be from that."""
    rows = {}
    for span in range(trace.num_spans):
        rules = rule_overlap(trace, span)
        reached, kept = int(trace.present[span].sum()), int(trace.kept[span].sum())
        rows[figures.level_name(trace, span, table(language()))] = {
            say("overview_reached"): f"{reached:,}",
            say("overview_kept"): f"{kept:,}",
            say("overview_share"): f"{kept / reached:.1%}" if reached else "–",
            say("overview_nominal"): f"{trace.retention_ratios[span]:.1%}",
            say("overview_overlap"): f"{rules.overlap:.0%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def continuation(trace: Trace) -> None:
    """The most likely next tokens, and the greedy continuation.

    Args:
        trace: of a prompt.
    """
    words = table(language())
    left, right = st.columns(2)
    with left:
        st.caption(say("next_tokens"))
        columns = {
            say("token"): [repr(str(p)) for p in trace.next_pieces],
            say("probability"): trace.next_probabilities,
        }
        bar = st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
        st.dataframe(pd.DataFrame(columns), hide_index=True, height="content", column_config={say("probability"): bar})
    with right:
        st.caption(say("continuation", n=len(trace.new_ids)), help=say("continuation_help"))
        st.text(trace.continuation or say("ends_here"))
        if trace.num_spans and len(trace.new_ids):
            kept = [
                f"{figures.level_name(trace, s, words)}: {(row > 0).sum()}" for s, row in enumerate(trace.new_scores)
            ]
            st.caption(say("new_kept", n=len(trace.new_ids)) + " " + ", ".join(kept))
