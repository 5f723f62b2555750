"""The lesson beside the text and the map of a run, in place of the run's results."""

from functools import lru_cache
from pathlib import Path

import streamlit as st

from analysis.lesson.content import Lesson, in_language
from app import links
from app.limits import Feature
from app.messages import bounded, plain
from app.settings import Settings
from app.state import LessonTaken, Run, session
from app.strings import language, say
from app.views import elsewhere
from app.views.chooser import Choice
from app.views.lesson import ending, stops, teacher
from subllm.assets import ASSETS

_FILE = ASSETS / "lesson.json"
_END = "end"  # key of what follows the last stop


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> Lesson:
    return Lesson.read(path.read_bytes())


def offered() -> Lesson:
    """The lesson that is taken: one that this person opened, or the one that ships."""
    return session().lesson.own or _read(_FILE, _FILE.stat().st_mtime_ns)


def offer() -> None:
    """A button that begins the lesson."""
    st.button(
        say("lesson_offer"), key="lesson offer", icon=":material/school:", help=say("lesson_offer_help"),
        on_click=_go, args=(offered().stops[0].key,),
    )  # fmt: skip


def _go(key: str) -> None:
    session().lesson.stop = key


@st.fragment
@bounded
def show(run: Run, choice: Choice, settings: Settings) -> None:
    """The lesson about a run.

    Args:
        run: run that is shown.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
    """
    own, lesson = session(), offered()
    taken = own.lesson
    keys = [*(stop.key for stop in lesson.stops), _END]
    if taken.stop not in keys:
        taken.stop = keys[0]
    base = _without_edits(run, taken)
    stop, number = lesson.stop(taken.stop), keys.index(taken.stop)
    stops.hear(run)
    if taken.entered != taken.stop:  # also by a link
        taken.entered = taken.stop
        if stop is not None and stop.colour and stops.answered(stop, base) is None:
            own.shown = {**own.shown, "colour": stop.colour}
    st.title(plain(in_language(lesson.title, language())))
    left, right = st.columns([2, 3], gap="large")
    with right:
        place, marked = stops.view(stop, run, base)
        elsewhere.label(run)
    links.write_link(base)
    with left:
        _steps(keys, number, taken)
        if stop is None:
            ending.show(lesson, base)
        else:
            stops.panel(stop, place, marked, run, base, choice, settings)
            if stop.key in taken.given and number + 1 < len(keys):
                st.button(
                    say("lesson_next"), key="lesson next below", type="primary", icon=":material/arrow_forward:",
                    on_click=_go, args=(keys[number + 1],),
                )  # fmt: skip
        if not taken.pinned:
            teacher.show(base, uploads=Feature.UPLOADS in settings.limits.features)


def _without_edits(run: Run, taken: LessonTaken) -> Run:
    """The run that the stops are about; a button of a stop may have made the one on screen from it."""
    own = session()
    if run.trace.run in taken.edited:
        return own.named(taken.run) or run
    taken.run = run.trace.run
    return run


def _steps(keys: list[str], number: int, taken: LessonTaken) -> None:
    """Where the learner is, and buttons to the stops before and after."""
    last = len(keys) - 1
    st.caption(
        say("lesson_end") if number == last else say("lesson_stop_of", number=number + 1, total=last),
    )
    with st.container(horizontal=True):
        st.button(
            say("lesson_back"), key="lesson back", icon=":material/arrow_back:", disabled=number == 0, on_click=_go,
            args=(keys[max(number - 1, 0)],),
        )  # fmt: skip
        st.button(
            say("lesson_next"), key="lesson next", icon=":material/arrow_forward:", disabled=number == last,
            on_click=_go, args=(keys[min(number + 1, last)],),
        )  # fmt: skip
        leave = not taken.pinned and st.button(say("lesson_leave"), key="lesson leave", icon=":material/close:")
    if leave:
        taken.stop = ""
        own = session()
        if own.shown_run in taken.edited:
            own.choose(taken.run)
        st.rerun()
