"""One token in depth: its numbers at every level, and what the model would predict after each block."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import Trace, figures
from analysis.lens import Lens
from analysis.statistics import score_rank
from app import runs
from app.components.routing_view import Shown
from app.messages import plot
from app.strings import language, say
from app.strings import table as words


def show(trace: Trace, source: runs.Source, shown: Shown) -> None:
    """The selected token, on demand: that needs the model once more.

    Args:
        trace: of a prompt.
        source: of the trace.
        shown: in the browser.
    """
    if shown.selected < 0:
        st.caption(say("depth_hint"))
        return
    key = (trace.digest, shown.selected)
    label = say("depth_run", n=f"{shown.selected:,}")
    if st.button(label, icon=":material/vertical_align_center:", key="follow"):
        with st.spinner(say("progress_loading")):
            st.session_state["lens"] = (key, *runs.follow(source, trace, shown.selected))
    if st.session_state.get("lens", (None,))[0] != key:
        return
    _, found, pieces = st.session_state["lens"]
    _numbers(trace, found, shown.selected)
    left, right = st.columns(2)
    plot(left, figures.lens(found, pieces, words(language())), "lens")
    left.caption(say("lens_caption"))
    if trace.kept[:, shown.selected].any():
        plot(right, figures.contribution_histogram(trace, found, words(language())), "channels")
        right.caption(say("depth_channels"))
    elif trace.num_spans:
        right.caption(say("depth_nothing"))


def _numbers(trace: Trace, found: Lens, token: int) -> None:
    """A row per level."""
    rows = []
    for span in range(trace.num_spans):
        state = "kept" if trace.kept[span, token] else "dropped" if trace.present[span, token] else "absent"
        rank, reached = score_rank(trace, span, token)
        before, inside, after = found.norms[span]
        rows.append(
            {
                say("depth_level"): figures.level_name(trace, span, words(language())),
                say("depth_state"): say(f"view_{state}State"),
                say("depth_score"): _number(trace.scores[span, token], "+.3f"),
                say("depth_rank"): "–" if state == "absent" else f"{rank:,} / {reached:,}",
                say("view_weight"): _number(trace.weights[span, token] if state == "kept" else np.nan, ".3f"),
                say("depth_before"): _number(before, ".1f"),
                say("depth_inside"): _number(inside, ".1f"),
                say("depth_added"): _number(trace.contribution_norm[span, token], ".1f"),
                say("depth_after"): _number(after, ".1f"),
            }
        )
    if rows:
        st.table(pd.DataFrame(rows).set_index(say("depth_level")))
        st.caption(say("depth_numbers"))


def _number(value: float, kind: str) -> str:
    return "–" if np.isnan(value) else format(float(value), kind)
