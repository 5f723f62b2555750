"""One token in depth: its numbers at every level, and what the model would predict after each block."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.lens import Lens
from analysis.figures import trace as figures
from analysis.trace.statistics import score_rank
from app import engine
from app.components.routing_view import Shown
from app.messages import ProgressBar, plot, show_error
from app.state import Run, session
from app.strings import language, say
from app.strings import table as words
from subllm import SubllmError


def show(run: Run, shown: Shown) -> None:
    """The selected token, on demand, since this runs the model again."""
    own, trace, token = session(), run.trace, shown.selected
    if token is None:
        st.caption(say("depth_hint"))
        return
    key = (trace.run, token)
    pressed = st.button(say("depth_run", n=f"{token:,}"), icon=":material/vertical_align_center:", key="follow")
    progress = ProgressBar("stop following")
    if pressed:
        try:
            with progress:
                own.found["lens"] = (key, engine.follow(run.recipe.model, trace, token, progress))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    known = own.recall("lens", key)
    if known is None:
        return
    found, pieces = known
    _numbers(trace, found, token)
    left, right = st.columns(2)
    plot(left, figures.lens(found, pieces, words(language())), "lens")
    left.caption(say("lens_caption"))
    if trace.routing.kept[:, token].any():
        plot(right, figures.contribution_histogram(trace, found, words(language())), "channels")
        right.caption(say("depth_channels"))
    elif trace.routing.num_levels:
        right.caption(say("depth_nothing"))


def _numbers(trace: Trace, found: Lens, token: int) -> None:
    """A table with a row per level."""
    routing, rows = trace.routing, []
    for level in routing.levels:
        row = level - 1
        reached = bool(routing.reached[row, token])
        scored = reached and routing.scores_tokens(level)
        before, inside, after = found.norms[row]
        rank, among = score_rank(routing, level, token) if scored else (0, 0)
        rows.append(
            {
                say("depth_level"): figures.level_name(trace, level, words(language())),
                say("depth_state"): _state(trace, level, token),
                say("depth_score"): _number(routing.scores[row, token], "+.3f"),
                say("depth_threshold"): _number(routing.thresholds[row], "+.3f"),
                say("depth_rank"): f"{rank:,} / {among:,}" if scored else "–",
                say("view_weight"): f"{routing.weights[row, token]:.3f}" if routing.kept[row, token] else "–",
                say("depth_before"): _number(before, ".1f"),
                say("depth_inside"): _number(inside, ".1f"),
                say("depth_added"): _number(routing.contribution_norm[row, token], ".1f"),
                say("depth_after"): _number(after, ".1f"),
            }
        )
    if rows:
        st.table(pd.DataFrame(rows).set_index(say("depth_level")))
        st.caption(say("depth_numbers"))


def _state(trace: Trace, level: int, token: int) -> str:
    routing, row = trace.routing, level - 1
    state = "kept" if routing.kept[row, token] else "dropped" if routing.reached[row, token] else "absent"
    name = say(f"view_{state}State")
    return say("view_levelEdited", title=name) if routing.edited[row, token] else name


def _number(value: float, kind: str) -> str:
    return "–" if np.isnan(value) else format(float(value), kind)
