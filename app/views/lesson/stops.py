"""One stop: what it says, what it asks, and what it shows once that is answered."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.figures.routing_view.data import Shown, Spotlight
from analysis.figures.terms import level_name
from analysis.lesson.answers import Answer
from analysis.lesson.checks import CHECKS, Given, Kind, Task
from analysis.lesson.content import Stop, filled, in_language, pieces
from analysis.lesson.formulas import FORMULAS, Figures, Value
from analysis.lesson.needs import lacking, level_for
from analysis.lesson.place import Place, key_token
from app.components.lesson import lesson_text
from app.messages import ProgressBar, plain, show_error
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views.chooser import Choice
from app.views.lesson import actions, inside
from app.views.trace import text_and_map
from subllm import SubllmError

_PROMPT = 60  # characters of a prompt in the file of answers
_VIEW = "lesson routing"
_WHOLE = "lesson whole routing"


class Asked(NamedTuple):
    """What was answered at a stop, and what the question was about."""

    given: Given | None
    run: str
    level: int
    tokens: tuple[int, ...]
    measured: Mapping[int, float]


def hear(run: Run) -> None:
    """Note what the learner has selected since, before a stop changes what is shown: what is lit follows the selection.

    Args:
        run: run that is shown.
    """
    text_and_map.hear(run.trace, _VIEW)


def view(stop: Stop | None, run: Run, base: Run) -> tuple[Place, frozenset[int]]:
    """The text and the map, with what the stop lights; where the learner is, and the tokens that are marked.

    Args:
        stop: stop of the lesson; None at its end.
        run: run that is shown.
        base: run that the stop is about.
    """
    own = session()
    if stop is None:
        shown = text_and_map.show(run.trace, _WHOLE)
        return Place(base.trace, shown.level, shown.tokens), frozenset()
    place = _place(stop, base.trace, Shown.parse(own.shown, base.trace))
    text_and_map.show(run.trace, _VIEW, _spotlight(stop, place, answered(stop, base) is not None))
    return place, frozenset(own.views[_VIEW].marked)


def answered(stop: Stop, base: Run) -> Asked | None:
    """What was answered at a stop about a run; None if nothing was."""
    asked: Asked | None = session().lesson.given.get(stop.key)
    return asked if asked is not None and asked.run == base.trace.run else None


def _place(stop: Stop, trace: Trace, shown: Shown) -> Place:
    """Where the learner is; once the question is answered, where it was asked."""
    asked: Asked | None = session().lesson.given.get(stop.key)
    if asked is not None and asked.run == trace.run:
        return Place(trace, asked.level, asked.tokens, asked.measured)
    return Place(trace, level_for(trace, stop.needs, shown.level), shown.tokens)


def _spotlight(stop: Stop, place: Place, answered: bool) -> Spotlight:
    if lacking(place, stop.needs):
        return Spotlight()
    tokens = FORMULAS[stop.formula].figures(place).tokens if stop.formula else ()
    task = CHECKS[stop.check].task(place) if stop.check else None
    if task is not None and task.kind is Kind.MARKS:
        if answered:
            return Spotlight()
        assert isinstance(task.expected, frozenset)
        return Spotlight(stop.light, veiled=True, among=task.among, most=len(task.expected))
    return Spotlight(stop.light, tokens)


def panel(
    stop: Stop, place: Place, marked: frozenset[int], run: Run, base: Run, choice: Choice, settings: Settings
) -> None:
    """What a stop says and asks.

    Args:
        stop: stop of the lesson.
        place: where the learner is.
        marked: tokens that the learner has marked.
        run: run that is shown.
        base: run that the stop is about.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
    """
    st.header(plain(in_language(stop.title, language())))
    reason = lacking(place, stop.needs)
    if reason:
        st.info(say(f"lesson_{reason}"), icon=":material/info:")
        return
    router = str(place.routing.routers[place.row])
    formula = FORMULAS[stop.formula] if stop.formula else None
    figures = formula.figures(place) if formula else Figures({})
    asked = answered(stop, base)
    ask = bool(stop.check) and asked is None
    said = ["idea", "do", "question"] if ask else ["idea", "do"]
    lesson_text([_paragraph(stop, name, router, figures.values) for name in said], f"lesson text {stop.key}")
    if figures.law and ask:
        st.latex(figures.law)
    if ask:
        _question(stop, place, figures, marked, base, choice, settings)
    elif stop.check:
        _reveal(stop, place, figures, asked, router)
        if stop.formula in inside.FORMULAS:
            inside.show(stop.formula, place, figures, base, choice, settings)
    else:
        if figures.latex:
            st.latex(figures.latex)
        lesson_text([_paragraph(stop, "mistake", router, figures.values)], f"lesson mistake {stop.key}")
    if stop.action is not None and not (ask and stop.action.after):
        actions.show(stop.action, stop.key, place, figures, run, base, choice, settings)


def _paragraph(stop: Stop, name: str, router: str, values: Mapping[str, Value]) -> tuple[str, list[Any]]:
    text = in_language(stop.text(name, router), language())
    if name in ("do", "mistake"):
        text = say(f"lesson_{name}") + text
    return name, [*pieces(text, values)]


def _question(
    stop: Stop, place: Place, figures: Figures, marked: frozenset[int], base: Run, choice: Choice, settings: Settings
) -> None:
    """The question, before it is answered."""
    task = CHECKS[stop.check].task(place)
    names = _options(stop, task, place, figures)
    about = f"{stop.key} {language()} {place.trace.run} {place.level} {figures.tokens}"
    given: Given | None = None
    with st.form(f"lesson form {about}", border=False):
        if task.kind is Kind.MARKS:
            st.caption(say("lesson_marks"))
            given = marked or None
        elif task.kind is Kind.NUMBER:
            given = st.number_input(say("lesson_number"), 0, None, None, 1, key=f"lesson number {about}")
        elif task.kind is Kind.SHARE:
            percent = st.number_input(say("lesson_share"), 0, 100, None, 1, key=f"lesson share {about}")
            given = None if percent is None else percent / 100
        else:
            given = st.radio(
                say("lesson_choice"), task.options, None, lambda option: plain(names[option]), f"lesson choice {about}"
            )
        with st.container(horizontal=True):
            checked = st.form_submit_button(say("lesson_check"), type="primary", icon=":material/check:")
            shown = st.form_submit_button(say("lesson_show_me"), icon=":material/visibility:")
    hint = in_language(stop.text("hint", str(place.routing.routers[place.row])), language())
    if hint:
        with st.expander(say("lesson_hint"), icon=":material/lightbulb:"):
            st.write(plain(filled(hint, figures.values)))
    progress = ProgressBar()
    if isinstance(task.expected, frozenset) and len(marked) < len(task.expected):
        own = session()
        if checked:
            own.found["lesson marks"] = (about, True)
        if own.recall("lesson marks", about):  # each mark draws the stop anew
            st.warning(say("lesson_mark_first", n=len(task.expected), marked=len(marked)))
        checked = False
    if checked and given is None:
        st.warning(say("lesson_choose_first"))
    elif checked or shown:
        _answer(stop, place, None if shown else given, base, choice, settings, progress)


def _answer(
    stop: Stop,
    place: Place,
    given: Given | None,
    base: Run,
    choice: Choice,
    settings: Settings,
    progress: ProgressBar,
) -> None:
    """Judge an answer and keep it; None if the learner asked to be shown the answer."""
    own = session()
    if stop.check == "mattered":
        try:
            token = key_token(place)
            trace, measured = actions.measure(base, place, token, choice, settings, progress)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
            return
        place = Place(trace, place.level, (token,), measured)
    check = CHECKS[stop.check]
    task = check.task(place)
    figures = FORMULAS[stop.formula].figures(place) if stop.formula else Figures({})
    right = given is not None and check.judge(task, given).right
    own.lesson.given[stop.key] = Asked(given, place.trace.run, place.level, place.tokens, place.measured)
    own.lesson.answers[stop.key] = Answer(
        stop.key,
        "" if given is None else _in_words(stop, task, given, place, figures),
        right,
        _in_words(stop, task, task.expected, place, figures),
        place.trace.provenance.checkpoint,
        place.trace.run,
        place.trace.prompt.text[:_PROMPT],
        language(),
    )
    own.shown = {key: value for key, value in own.shown.items() if key != "colour"}
    st.rerun()


def _reveal(stop: Stop, place: Place, figures: Figures, asked: Asked | None, router: str) -> None:
    """The verdict, the formula with its numbers, and what people get wrong."""
    assert asked is not None
    check, own = CHECKS[stop.check], session()
    task = check.task(place)
    expected = _in_words(stop, task, task.expected, place, figures)
    given = asked.given if asked.given is not None else task.expected
    assert given is not None
    verdict = check.judge(task, given)
    if asked.given is None:
        st.info(plain(say("lesson_shown", expected=expected)), icon=":material/visibility:")
    elif task.kind is Kind.MARKS:
        (st.success if verdict.right else st.warning)(say("lesson_better" if verdict.right else "lesson_no_better"))
    elif verdict.right:
        st.success(say("lesson_right"), icon=":material/check_circle:")
    else:
        st.warning(plain(say("lesson_wrong", expected=expected)), icon=":material/lightbulb:")
    if figures.latex:
        st.latex(figures.latex)
    values = {**figures.values, **verdict.values}
    if place.measured:
        _measured(place)
    yours = ["yours"] if stop.yours and asked.given is not None else []
    paragraphs = [_paragraph(stop, name, router, values) for name in (*yours, "reveal", "mistake")]
    lesson_text(paragraphs, f"lesson reveal {stop.key}")

    def again() -> None:
        own.lesson.given.pop(stop.key, None)
        own.shown = {**own.shown, **({"colour": stop.colour} if stop.colour else {})}

    st.button(say("lesson_again"), key=f"lesson again {stop.key}", icon=":material/replay:", on_click=again)


def _measured(place: Place) -> None:
    """The probability of the likeliest next token after each drop."""
    words = table(language())
    for level in sorted(set(place.measured) - {0}):
        before, after = (f"{place.measured[each]:.2%}" for each in (0, level))
        name = level_name(place.trace, level, words)
        st.caption(plain(say("lesson_measured", level=name, before=before, after=after)))


def _options(stop: Stop, task: Task, place: Place, figures: Figures) -> dict[str, str]:
    """What can be chosen, in words."""
    named = {key: filled(in_language(text, language()), figures.values) for key, text in stop.options.items()}
    if stop.check == "mattered":
        words = table(language())
        named |= {option: level_name(place.trace, int(option), words) for option in task.options}
    return {option: named.get(option) or task.labels.get(option, option) for option in task.options}


def _in_words(stop: Stop, task: Task, given: Given | None, place: Place, figures: Figures) -> str:
    """An answer as a learner would say it."""
    if isinstance(given, str):
        return _options(stop, task, place, figures)[given]
    if isinstance(given, frozenset):
        assert isinstance(task.expected, frozenset)
        return f"{len(given & task.expected)} / {len(given)}"
    if given is None:
        return "–"
    return f"{given:.0%}" if task.kind is Kind.SHARE else f"{given:,.0f}"
