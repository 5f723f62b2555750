"""Lessons are data: what ships is whole in both languages, and what a teacher writes is read or refused in words."""

import copy
import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.lesson.checks import CHECKS, Kind
from analysis.lesson.content import ACTIONS, MOST_BYTES, TERMS, Lesson, filled, in_language, pieces
from analysis.lesson.formulas import FORMULAS
from analysis.lesson.needs import lacking, level_for
from analysis.lesson.place import Place
from subllm.assets import ASSETS
from tests.analysis.trace.test_trace import make_trace

FILE = ASSETS / "lesson.json"
GIVEN = {Kind.MARKS: frozenset({0}), Kind.NUMBER: 10.0, Kind.SHARE: 0.5, Kind.CHOICE: "yes"}


@pytest.fixture(scope="module")
def lesson():
    return Lesson.read(FILE.read_bytes())


@pytest.fixture
def entry():
    return json.loads(FILE.read_text(encoding="utf-8"))


def texts(value, where=""):
    """Every text of the file: an object whose values are all strings."""
    if isinstance(value, dict) and {*value} & {"en", "zh"}:
        yield where, value
    elif isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, each in entries:
            yield from texts(each, f"{where}.{name}")


def test_the_shipped_lesson_has_nine_stops_and_five_questions(lesson):
    assert [stop.key for stop in lesson.stops] == [
        "editor", "grid", "score", "threshold", "nesting", "inside", "bypass", "cost", "break",
    ]  # fmt: skip
    assert len(lesson.questions) == 5
    assert all(stop.question and stop.do and stop.mistake and stop.hint and stop.light for stop in lesson.stops)


def test_every_text_is_in_both_languages_with_the_same_figures_and_terms(entry):
    found = dict(texts(entry))
    assert len(found) > 90
    for where, text in found.items():
        assert text.keys() == {"en", "zh"}, where
        names = [{*re.findall(r"\{(\w+)", text[language])} for language in ("en", "zh")]
        terms = [sorted(re.findall(r"\]\((\w+)\)", text[language])) for language in ("en", "zh")]
        assert names[0] == names[1] and terms[0] == terms[1], where


def test_no_number_of_a_run_is_typed_into_the_stops(entry):
    """Figures come from the trace; what stays are the numbers of definitions, such as the range from 0 to 1."""
    for where, text in texts(entry["stops"]):
        bare = re.sub(r"\{[^{}]*\}", "", text["en"])
        assert {*re.findall(r"\d+(?:\.\d+)?", bare)} <= {"0", "1"}, where


@pytest.mark.parametrize("structure", ["T(T(T)T)(T)", "T(T)T", "TT"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_stop_is_said_on_every_run_or_why_not(lesson, structure, language):
    trace, said = make_trace(structure, tokens=40, seed=1), 0
    trace = replace(trace, provenance=replace(trace.provenance, edits=()))
    for stop in lesson.stops:
        place = Place(trace, level_for(trace, stop.needs, 1), (0,), {0: 0.5, 1: 0.4, 2: 0.1, 3: 0.5})
        if lacking(place, stop.needs):
            continue
        figures, check = FORMULAS[stop.formula].figures(place), CHECKS[stop.check]
        task = check.task(place)
        values = {**figures.values, **check.judge(task, GIVEN[task.kind]).values}
        for router in ("subllm", "mod", "colt5"):
            for name in ("idea", "do", "question", "reveal", "yours", "mistake", "hint"):
                text = "".join(piece.text for piece in pieces(in_language(stop.text(name, router), language), values))
                assert not re.search(r"[{}\[\]]", text.replace(str(trace.prompt.text), "")), (stop.key, name)
                said += 1
    assert said == (9 if structure == "T(T(T)T)(T)" else 8 if structure == "T(T)T" else 0) * 3 * 7


def test_what_is_filled_in_is_never_read_as_markup():
    trap = "[kept](kept) {one} {0.__class__} <b>"
    assert filled("a {one} b", {"one": trap}) == f"a {trap} b"
    (whole,) = pieces("{one}", {"one": trap})
    assert (whole.text, whole.term) == (trap, "")
    assert [(piece.text, piece.term) for piece in pieces("a [b {n:,}](kept) c", {"n": 1234})] == [
        ("a ", ""), ("b 1,234", "kept"), (" c", ""),
    ]  # fmt: skip


def test_a_teachers_lesson_in_one_language_is_read(entry):
    entry = {"format": 1, "title": {"de": "Kurz"}, "intro": {"de": "Eine Station."}, "stops": [
        {"key": "eins", "formula": "grid",
         "title": {"de": "Felder"}, "idea": {"de": "{cells:,} Felder"}, "do": {"de": "Sieh hin."},
         "mistake": {"de": "–"}},
    ]}  # fmt: skip
    lesson = Lesson.read(json.dumps(entry).encode())
    assert in_language(lesson.stops[0].idea, "zh") == "{cells:,} Felder"
    assert lesson.questions == ()


BROKEN = [
    (lambda e: e.update(format=2), "lesson format 2; format 1"),
    (lambda e: e.update(more=1), "lesson of the lesson has 'more'"),
    (lambda e: e.update(stops=[]), "at least one stop"),
    (lambda e: e.update(stops="x"), "stops of the lesson must be a list"),
    (lambda e: e["stops"][0].update(formula="nope"), "editor.formula of the lesson has 'nope'"),
    (lambda e: e["stops"][0].update(check=["x"]), "editor.check of the lesson has"),
    (lambda e: e["stops"][0].update(key="No Good"), "The key of a stop is 'No Good'"),
    (lambda e: e["stops"][1].update(key="editor"), "The key editor stands twice"),
    (lambda e: e["stops"][0]["idea"].update(en="{nothing}"), "editor.idea.en of the lesson has 'nothing'"),
    (lambda e: e["stops"][0]["idea"].update(en="{hits}"), "editor.idea.en of the lesson has 'hits'"),
    (lambda e: e["stops"][0]["do"].update(en="{window:>9999d}"), "formats a number as '>9999d'"),
    (lambda e: e["stops"][1]["idea"].update(en="{work:d}"), "formats a number as 'd'"),
    (lambda e: e["stops"][1]["idea"].update(en="{tokens:,.1}"), "formats a number as ',.1'"),
    (lambda e: e["stops"][0]["idea"].update(en="[x](y)"), "editor.idea.en of the lesson has 'y'"),
    (lambda e: e["stops"][0].update(idea={}), "editor.idea of the lesson has no text"),
    (lambda e: e["stops"][0].update(title="x"), "editor.title of the lesson must be an object"),
    (lambda e: e["stops"][3].update(options={}), "threshold.options.yes of the lesson has no text"),
    (lambda e: e["stops"][1]["action"].update(kind="shell"), "grid.action of the lesson has 'shell'"),
    (lambda e: e["questions"][0].update(answer=3), "q-dropped.answer of the lesson has 3"),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN)
def test_what_is_wrong_with_a_lesson_is_said(entry, breaks, message):
    entry = copy.deepcopy(entry)
    breaks(entry)
    with pytest.raises(AnalysisError, match=re.escape(message)):
        Lesson.read(json.dumps(entry).encode())


def test_every_form_of_a_number_that_is_read_can_be_written_whatever_the_value():
    parts = (["", "+"], ["", ","], ["", ".2"], ["", *"dfg%ens"])
    specs, read = ["".join(each) for each in product(*parts)], 0
    for spec in specs:
        entry = {"format": 1, "title": {"en": "a"}, "intro": {"en": "a"}, "stops": [
            {"key": "a", "formula": "grid", **{name: {"en": "a"} for name in ("title", "do", "mistake")},
             "idea": {"en": f"{{cells:{spec}}}"}},
        ]}  # fmt: skip
        try:
            text = Lesson.read(json.dumps(entry).encode()).stops[0].idea["en"]
        except AnalysisError:
            continue
        read += 1
        for value in (1234, 0.25, float("inf"), float("nan"), "<b>", np.float32(2), np.int64(3)):
            assert "{" not in filled(text, {"cells": value})
    assert 20 < read < len(specs)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"x" * (MOST_BYTES + 1), b"[]", b"null"])
def test_a_file_that_is_no_lesson_is_refused(content):
    with pytest.raises(AnalysisError):
        Lesson.read(content)


def test_the_documented_shape_is_read_and_every_formula_check_and_term_is_named():
    page = (ASSETS.parent / "docs" / "lesson.md").read_text(encoding="utf-8")
    (shape,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    lesson = Lesson.read(shape.encode())
    assert lesson.stops[0].formula == "grid"
    for field, names in (("formula", FORMULAS), ("check", CHECKS), ("light", TERMS), ("action", ACTIONS)):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{field}` |")]
        assert all(re.search(rf"\b{name}\b", line) for name in names), field
    assert re.findall(r"^\| (\d) \|", page, re.MULTILINE) == [*"12345678"]  # facts of the rubric
