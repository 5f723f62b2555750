"""Patching: the state of another prompt's token put into the run, before each level, and what that changes."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.patching import Patched
from analysis.figures import debug as debug_figures
from analysis.figures.quoted import quoted
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import level_name
from analysis.report.again import MOST_CHARACTERS
from app import engine, reproduce
from app.engine import Place
from app.messages import ProgressBar, plain, plot, show_error, sortable
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import again
from app.views.trace import text_and_map
from app.visitors import working
from subllm import SubllmError


def show(run: Run, settings: Settings) -> None:
    """The tab."""
    own, trace = session(), run.trace
    st.caption(say("patch_help"))
    if trace.provenance.edits:
        st.info(say("patch_edited"), icon=":material/edit_off:")
        return
    if not trace.routing.num_levels:
        st.info(say("patch_no_levels"), icon=":material/info:")
        return
    shown = text_and_map.show(trace, key="patch view")
    if shown.selected is None:
        st.info(say("why_select"), icon=":material/touch_app:")
        return
    place, pressed = _form(trace, shown.selected)
    progress = ProgressBar()
    key = (trace.run, own.answer, place)
    if pressed:
        try:
            with working("patching", settings, progress) as work:
                found = engine.patched(run.recipe, trace, place, own.answer, work, settings.limits.tokens)
            own.found["patched"] = (key, found)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    in_command = place.other.strip() and "\0" not in place.other and len(place.other) <= MOST_CHARACTERS
    if run.recipe.again and in_command:
        again.show(reproduce.patched(run.recipe, place, own.answer))
    known = own.recall("patched", key)
    if known is not None:
        _results(trace, shown, *known)


def _form(trace: Trace, token: int) -> tuple[Place, bool]:
    with st.form("patch form"):
        piece = quoted(str(trace.prompt.pieces[token]))
        st.markdown(f"**{plain(say('patch_token', n=f'{token:,}', piece=piece))}**")
        left, right = st.columns([4, 1])
        other = left.text_area(
            say("patch_other"), key="patch other", height=80, help=say("patch_other_help"), persist_state="session"
        )
        source = right.number_input(
            say("patch_source"), 0, None, token, key=f"patch source {token}", help=say("patch_source_help"),
            persist_state="session",
        )  # fmt: skip
        pressed = st.form_submit_button(say("patch_run"), type="primary", icon=":material/healing:")
    return Place(token, other, int(source)), pressed


def _results(trace: Trace, shown: Shown, other: Trace, found: list[Patched]) -> None:
    """A row for every level, and the patched run of the chosen one."""
    words, level = table(language()), shown.level
    piece = quoted(str(other.prompt.pieces[found[0].patch.source]))  # every token reaches the first level
    st.markdown(f"**{plain(say('patch_found', piece=piece, n=f'{found[0].patch.source:,}'))}**")
    forms: dict[str, str | list[str]] = {
        say("patch_distance"): ".0%",
        say("patch_moved"): ".1%",
        say("patch_flips"): ",",
    }
    if found[0].answer is not None:
        forms[say("number_answer")] = [_answer(each) for each in found]
    st.dataframe(sortable(pd.DataFrame([_row(trace, each) for each in found]), forms), hide_index=True, placeholder="–")
    st.caption(say("patch_moved_help"))
    name = level_name(trace, level, words)
    chosen = next((each for each in found if each.patch.level == level), None)
    if chosen is None:
        st.caption(plain(say("patch_absent", level=name)))
        return
    st.markdown(f"**{plain(say('patch_level', level=name))}**")
    labels = (words["patch_without"], words["patch_with"], words["patch_after_other"])
    plot(st, debug_figures.distributions(chosen.next_pieces, chosen.next_probabilities, labels, words), "patch next")
    st.caption(say("patch_map"))
    text_and_map.draw(chosen.trace, shown, key="patched view")  # what is selected here selects nothing above


def _row(trace: Trace, found: Patched) -> dict[str, object]:
    row: dict[str, object] = {
        say("edit_level"): level_name(trace, found.patch.level, table(language())),
        say("patch_distance"): found.distance,
        say("patch_moved"): found.moved,
        say("patch_flips"): int(np.abs(found.flipped).sum()),
    }
    if found.answer is not None:
        row[say("number_answer")] = float(np.exp(found.answer.edited))
    return row


def _answer(found: Patched) -> str:
    """The probability of the answer before and after."""
    assert found.answer is not None
    return f"{np.exp(found.answer.unedited):.3%} → {np.exp(found.answer.edited):.3%}"
