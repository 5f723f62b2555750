"""What a score and a bypass are made of, channel by channel, once a stop's question about them is answered."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.level_states import LevelStates
from analysis.figures.terms import level_name
from analysis.guard import Progress
from analysis.lesson.formulas import Figures
from analysis.lesson.place import Place
from app import engine
from app.engine import Recipe
from app.messages import ProgressBar, plain, show_error
from app.settings import Settings
from app.state import Run
from app.strings import language, say, table
from app.views.chooser import Choice
from app.views.lesson import actions
from subllm import SubllmError

_TERMS = 5  # the largest ones that are shown
FORMULAS = ("score", "bypass")  # of the stops that have channels to show


def show(formula: str, place: Place, figures: Figures, base: Run, choice: Choice, settings: Settings) -> None:
    """A button that reads the hidden states, and their table.

    Args:
        formula: of the stop, one of `FORMULAS`.
        place: where the question was asked.
        figures: live figures of the stop, about two tokens.
        base: run that the stop is about.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
    """
    name = f"lesson channels {formula}"
    pressed = st.button(say(f"lesson_channels_{formula}"), key=name, icon=":material/zoom_in:")
    progress = ProgressBar()

    def read(recipe: Recipe, made: Trace, work: Progress) -> LevelStates:
        return engine.states_around(recipe.model, made, place.level, figures.tokens, work)

    about = (place.level, figures.tokens)
    try:
        states = actions.on_demand(name, about, read, place, base, choice, settings, progress, pressed=pressed)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    if states is None:
        return
    if formula == "score":
        _terms(states, place, figures)
    else:
        _channel(states, place, figures)


def _terms(states: LevelStates, place: Place, figures: Figures) -> None:
    """The largest terms of a token's score."""
    token = place.named(figures.tokens[0])
    if states.weight is None:
        st.caption(plain(say("lesson_no_terms")))
        return
    terms = states.terms(0)
    largest = np.argsort(-np.abs(terms), kind="stable")[:_TERMS]
    rows = [
        (f"{channel:,}", f"{states.before[0, channel]:.2f}", f"{states.weight[channel]:.3f}", f"{terms[channel]:+.3f}")
        for channel in largest.tolist()
    ]
    rest = terms.sum() - terms[largest].sum()
    rows.append((say("lesson_other_channels", n=f"{len(terms) - len(largest):,}"), "", "", f"{rest:+.3f}"))
    rows.append((say("lesson_sum"), "", "", f"{terms.sum():+.3f}"))
    st.caption(plain(say("lesson_terms", token=token)))
    st.table(pd.DataFrame(rows, columns=[say("lesson_channel"), "x", "w", "x · w"]).set_index(say("lesson_channel")))


def _channel(states: LevelStates, place: Place, figures: Figures) -> None:
    """One channel of the token that is kept and of the one that is dropped, before and after the level."""
    routing, row = place.routing, place.row
    added = states.after - states.before
    about = f"{place.trace.run} {place.level} {figures.tokens}"
    channel = st.number_input(
        say("lesson_channel"), 0, added.shape[1] - 1, int(np.abs(added[0]).argmax()), 1, key=f"lesson channel {about}"
    )
    columns: dict[str, list[str]] = {
        say("token"): [plain(place.named(token)) for token in figures.tokens],
        "x": [f"{states.before[each, channel]:.2f}" for each in (0, 1)],
        "f(x) − x": [f"{states.inside[0, channel] - states.before[0, channel]:+.2f}", "–"],
        "a": [f"{routing.weights[row, token]:.2f}" for token in figures.tokens],
    }
    if routing.bypassed[row]:
        columns["β"] = [f"{routing.bypass_scale[row, channel]:.2f}"] * 2
    columns[say("lesson_added")] = [f"{added[each, channel]:+.2f}" for each in (0, 1)]
    columns[say("lesson_out")] = [f"{states.after[each, channel]:.2f}" for each in (0, 1)]
    name = level_name(place.trace, place.level, table(language()))
    st.caption(plain(say("lesson_one_channel", channel=channel, level=name)))
    st.table(pd.DataFrame(columns).set_index(say("token")))
