"""The end of the lesson: questions with fixed answers, how the selection was learned, and the result to take away."""

import streamlit as st

from analysis.figures import trace as figures
from analysis.figures.terms import level_words
from analysis.lesson.answers import COLUMNS, Answer
from analysis.lesson.content import Lesson, Question, in_language
from analysis.lesson.needs import level_for
from analysis.trace.statistics import rule_overlap
from app.components.lesson import answers_file
from app.messages import plain, plot
from app.state import Run, session
from app.strings import language, say, table

_PROMPT = 60  # characters of a prompt in the file of answers
_FILE = "answers"


def show(lesson: Lesson, base: Run) -> None:
    """The end.

    Args:
        lesson: that was taken.
        base: run that its stops are about.
    """
    answers = session().lesson.answers
    if all(question.key in answers for question in lesson.questions):
        for question in lesson.questions:
            _explained(question, answers[question.key])
        _result(lesson)
    else:
        _ask(lesson, base)
    _learned(lesson, base)


def _ask(lesson: Lesson, base: Run) -> None:
    own, chosen = session(), {}
    with st.form(f"lesson questions {language()}", border=False):
        for question in lesson.questions:
            options = [in_language(option, language()) for option in question.options]
            chosen[question.key] = st.radio(
                plain(in_language(question.text, language())), range(len(options)), None,
                lambda index, options=options: plain(options[index]), f"lesson question {question.key} {language()}",
            )  # fmt: skip
        pressed = st.form_submit_button(say("lesson_finish"), type="primary", icon=":material/check:")
    if pressed and any(each is None for each in chosen.values()):
        st.warning(say("lesson_choose_first"))
    elif pressed:
        for question in lesson.questions:
            own.lesson.answers[question.key] = _answer(question, chosen[question.key], base)
        st.rerun()


def _answer(question: Question, chosen: int | None, base: Run) -> Answer:
    assert chosen is not None
    said = [in_language(option, language()) for option in question.options]
    trace = base.trace
    return Answer(
        question.key, said[chosen], chosen == question.answer, said[question.answer], trace.provenance.checkpoint,
        trace.run, trace.prompt.text[:_PROMPT], language(),
    )  # fmt: skip


def _explained(question: Question, answer: Answer) -> None:
    """A question, what was answered, and why that is right or not."""
    st.markdown(f"**{plain(in_language(question.text, language()))}**")
    right = in_language(question.options[question.answer], language())
    verdict = say("lesson_right") if answer.right else say("lesson_wrong_answer", expected=right)
    (st.success if answer.right else st.warning)(plain(f"{verdict} {in_language(question.why, language())}"))


def _result(lesson: Lesson) -> None:
    """The result as text, and the answers as a file."""
    own = session().lesson
    answers = [*own.answers.values()]
    right = sum(answer.right for answer in answers)
    title = in_language(lesson.title, language())
    st.header(plain(say("lesson_result", right=right, n=len(answers))))
    lines = [
        say("lesson_result_line_right" if answer.right else "lesson_result_line_wrong", question=_title(lesson, answer))
        for answer in answers
    ]
    address = st.context.url or ""
    st.code(
        "\n".join([title, say("lesson_result", right=right, n=len(answers)), *lines, address]),
        language=None,
        wrap_lines=True,
    )
    words = {"name": say("lesson_name"), "download": say("lesson_download"), "file": _FILE}
    answers_file([answer.row(title) for answer in answers], COLUMNS, words, f"lesson answers {language()}")
    st.caption(say("lesson_download_help"))


def _title(lesson: Lesson, answer: Answer) -> str:
    """What a question is called."""
    stop = lesson.stop(answer.question)
    question = next((each for each in lesson.questions if each.key == answer.question), None)
    text = stop.title if stop is not None else question.text if question is not None else {}
    return in_language(text, language())


def _learned(lesson: Lesson, base: Run) -> None:
    """The scores with the threshold, beside what the rule of training would keep."""
    closing = in_language(lesson.closing, language())
    if closing:
        st.header(say("lesson_learned"))
        st.write(plain(closing))
    trace, words = base.trace, table(language())
    if not any(trace.routing.scored):
        return
    level = level_for(trace, ("scores",), 1)
    if not trace.routing.scores_tokens(level):
        return
    plot(st, figures.score_histogram(trace, level, words), "lesson histogram")
    found = rule_overlap(trace.routing, level)
    st.caption(
        level_words(trace, level, words)["rules"].format(
            kept=f"{found.kept:,}", share=f"{trace.routing.retention_ratios[level - 1]:.0%}",
            highest=f"{found.highest:,}", overlap=f"{found.overlap:.0%}", differing=f"{len(found.differing):,}",
        )
    )  # fmt: skip
