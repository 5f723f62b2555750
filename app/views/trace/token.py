"""One token in depth: its numbers at every level, and what the model would predict after each block."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.lens import Lens
from analysis.figures import trace as figures
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import common_word, level_name, state_in_words
from analysis.trace.statistics import score_rank
from app import engine
from app.messages import ProgressBar, plain, plot, show_error
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say
from app.strings import table as words
from app.views import elsewhere
from app.views.trace.levels import no_bypass
from app.visitors import working
from subllm import SubllmError


def show(run: Run, shown: Shown, settings: Settings) -> None:
    """The selected token, on demand, since this runs the model again."""
    own, trace, token = session(), run.trace, shown.selected
    if token is None:
        st.caption(say("depth_hint"))
        return
    if elsewhere.model_absent(run):
        return
    key = (trace.run, token)
    pressed = st.button(say("depth_run", n=f"{token:,}"), icon=":material/vertical_align_center:", key="follow")
    progress = ProgressBar()
    if pressed:
        try:
            with working("lens", settings, progress) as work:
                own.found["lens"] = (key, engine.follow(run.recipe.model, trace, token, work))
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
    if np.nan_to_num(found.contributions).any():
        plot(right, figures.contribution_histogram(trace, found, words(language())), "channels")
        right.caption(say("depth_channels"))
    elif trace.routing.num_levels:
        right.caption(say("depth_nothing"))


def _numbers(trace: Trace, found: Lens, token: int) -> None:
    """A table with a row per level."""
    routing, rows, table = trace.routing, [], words(language())

    def column(key: str) -> str:
        return common_word(trace, key, table)

    for level in routing.levels:
        row = level - 1
        reached = bool(routing.reached[row, token])
        scored = reached and routing.scores_tokens(level)
        before, inside, after = found.norms[row]
        rank, among = score_rank(routing, level, token) if scored else (0, 0)
        rows.append(
            {
                say("depth_level"): level_name(trace, level, table),
                say("depth_state"): state(trace, level, token),
                column("depth_score"): _number(routing.scores[row, token], "+.3f"),
                say("depth_threshold"): _number(routing.thresholds[row], "+.3f"),
                say("depth_rank"): f"{rank:,} / {among:,}" if scored else "–",
                column("depth_weight"): f"{routing.weights[row, token]:.3f}" if routing.kept[row, token] else "–",
                say("depth_before"): _number(before, ".1f"),
                say("depth_inside"): _number(inside, ".1f"),
                say("depth_added"): _number(routing.contribution_norm[row, token], ".1f"),
                say("depth_after"): _number(after, ".1f"),
            }
        )
    if rows:
        shown = pd.DataFrame(rows).set_index(say("depth_level"))
        if not any(routing.scored):
            shown = shown.drop(columns=[column("depth_score"), say("depth_threshold"), say("depth_rank")])
        st.table(shown)
        st.caption(common_word(trace, "depth_numbers", table, "\n\n"))
        without = [level for level in routing.levels if not routing.bypassed[level - 1]]
        if any(routing.bypassed) and without:
            st.caption(plain(no_bypass(trace, without[0])))


def state(trace: Trace, level: int, token: int) -> str:
    """What a level did with a token, in the language of the page.

    Args:
        trace: trace of a prompt.
        level: number of the level.
        token: index of the token.
    """
    routing, row = trace.routing, level - 1
    reached, kept, into = routing.reached[:, token], routing.kept[:, token], int(routing.merged_into[row, token])
    name = state_in_words(trace, level, reached.tolist(), kept.tolist(), into, words(language()))
    return say("view_levelEdited", title=name) if routing.edited[row, token] else name


def _number(value: float, kind: str) -> str:
    return "–" if np.isnan(value) else format(float(value), kind)
