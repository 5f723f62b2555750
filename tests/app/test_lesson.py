"""The lesson's panel, run by Streamlit's own test runner: every router, answers, edits, links."""

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from analysis.debug.edits import Edit
from analysis.debug.rules import Rule
from analysis.lesson.content import Lesson
from analysis.lesson.place import Place, key_token, pair
from analysis.run import RunOptions, record_trace
from app.settings import SHIPPED
from app.shipped_run import shipped_trace
from app.state import Elsewhere, Session
from app.strings import table
from app.views.lesson.actions import _what_ran
from subllm.assets import ASSETS
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from tests.conftest import byte_tokenizer, tiny_model

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
LESSON = Lesson.read((ASSETS / "lesson.json").read_bytes())
STOPS = [stop.key for stop in LESSON.stops]
TEXT = "the cat sat on the mat and then the dog sat on the cat"
DROPS = {"editor", "inside", "bypass", "break"}
MISSING = {  # stops that cannot fit, by structure and router
    ("TT(T(T)T)T", "subllm"): set(),
    ("T(T)T", "mod"): {"nesting"},
    ("TT(T(T)T)T", "random"): {"score", "threshold"},
    ("T(T)T", "stride"): {"score", "threshold", "nesting", *DROPS},
    ("TCC", "subllm"): {"nesting", *DROPS},
    ("TT", "subllm"): {*STOPS},
}


def saved(structure, router, folder):
    """A small checkpoint, and the trace of a prompt through it."""
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    tiny_model(structure, router=router, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    return record_trace(checkpoint, TEXT, RunOptions(4), dense=load_dense(checkpoint), name="tiny")


def lesson(trace, stop, language="en"):
    """The page at a stop about a trace."""
    own = Session(opened=True)
    own.remember(trace, Elsewhere.FILE)
    own.lesson.stop = stop
    own.lesson.pinned = language != "en"  # selectors in another language are beyond the test runner
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.session_state["session"] = own
    page.query_params["lang"] = language
    page.run()
    assert not page.exception and not page.error
    return page


def press(page, label):
    next(button for button in page.button if label in button.label).click().run()
    assert not page.exception and not page.error, [error.value for error in page.error]


def said(page):
    return " ".join(each.value for kind in ("info", "success", "warning", "caption") for each in getattr(page, kind))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return saved("TT(T(T)T)T", "subllm", tmp_path_factory.mktemp("lesson"))


@pytest.mark.parametrize(
    ("structure", "router", "language"),
    [*((*each, "en") for each in MISSING), ("TT(T(T)T)T", "subllm", "zh"), ("T(T)T", "stride", "zh")],
)
def test_every_stop_asks_or_says_why_it_does_not_fit(structure, router, language, tmp_path):
    run, words, asked = saved(structure, router, tmp_path), table(language), set()
    page = lesson(run, STOPS[0], language)
    for key in STOPS:
        assert page.session_state["session"].lesson.stop == key
        if any(words["lesson_check"] in button.label for button in page.button):
            asked.add(key)
            press(page, words["lesson_show_me"]) if key != "break" else None  # which needs the model
        else:
            reasons = [
                words[f"lesson_{reason}"] for reason in ("merges", "heavy", "no_scores", "no_nesting", "no_levels")
            ]
            assert any(each in [info.value for info in page.info] for each in reasons), key
        press(page, words["lesson_next"])
    assert asked == {*STOPS} - MISSING[structure, router]
    assert len(page.radio) == len(LESSON.questions)


def test_an_answer_is_judged_kept_and_asked_again(trace):
    page = lesson(trace, "grid")
    saved_cells = int((~trace.routing.processed).sum())
    page.number_input[0].set_value(saved_cells)
    press(page, "Check")
    assert "Right." in said(page)
    own = page.session_state["session"]
    assert own.lesson.answers["grid"].right and own.lesson.answers["grid"].answer == f"{saved_cells:,}"
    press(page, "Ask me again")
    page.number_input[0].set_value(3 * saved_cells + 9)
    press(page, "Check")
    assert f"Your run says: {saved_cells:,}." in said(page).replace("\\", "")
    assert not own.lesson.answers["grid"].right
    press(page, "Next")
    assert page.query_params["lesson"] == "score"


def test_nothing_chosen_is_said_and_not_counted(trace):
    page = lesson(trace, "score")
    press(page, "Check")
    assert "Choose an answer first." in said(page)
    assert page.session_state["session"].lesson.answers == {}


def test_the_closing_questions_are_judged_and_explained(trace):
    page = lesson(trace, "end")
    for radio, question in zip(page.radio, LESSON.questions, strict=True):
        radio.set_value((question.answer + (question.key == "q-speed")) % 3)
    press(page, "Check all answers")
    assert "Your result: 4 of 5 right" in " ".join(each.value for each in page.header).replace("\\", "")
    assert len(page.success) == 4 and LESSON.questions[-1].why["en"][:20] in page.warning[0].value.replace("\\", "")


def test_a_link_to_a_stop_that_is_not_there_opens_the_first_one(trace):
    page = lesson(trace, "<script>")
    assert page.session_state["session"].lesson.stop == STOPS[0]


def test_the_link_of_a_teacher_pins_stop_and_language():
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"lesson": "bypass", "pin": "1", "lang": "zh"})
    page.run()
    assert not page.exception and not page.text_area and not page.selectbox
    assert {"lesson": "bypass", "pin": "1", "lang": "zh"}.items() <= page.query_params.items()
    assert not any(table("zh")["lesson_leave"] == button.label for button in page.button)


def test_the_link_for_a_class_is_that_of_the_run_and_pinned(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "prompt": TEXT, "checkpoint": "tiny", "lesson": "grid", "lang": "en"})
    page.run()
    assert not page.exception and not page.error
    link = next(code.value for code in page.code if "pin=1" in code.value)
    fields = parse_qs(urlsplit(link).query)
    assert (fields["prompt"], fields["lesson"], fields["checkpoint"]) == ([TEXT], ["grid"], ["tiny"])
    press(page, "Turn routing off")
    own = page.session_state["session"]
    assert own.run().trace.routing.kept.all() and own.run().trace.run in own.lesson.edited
    assert "dense@*" in said(page).replace("\\", "") and "edits" not in page.query_params
    press(page, "Back to my run")
    assert own.run().trace.provenance.edits == ()


def test_which_drop_mattered_is_measured_by_running_the_prompt_again(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "prompt": TEXT, "checkpoint": "tiny", "lesson": "break", "lang": "en"})
    page.run()
    press(page, "Show me")
    asked = page.session_state["session"].lesson.given["break"]
    changes = {level: abs(value - asked.measured[0]) for level, value in asked.measured.items() if level}
    assert changes and max(changes.values()) > 0
    expected = page.session_state["session"].lesson.answers["break"].expected
    assert expected == f"Level {max(changes, key=changes.get)}"
    assert said(page).count("the probability changes from") == len(changes)


def test_a_score_is_shown_as_its_largest_terms_and_a_level_in_one_channel(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "prompt": TEXT, "checkpoint": "tiny", "lesson": "score", "lang": "en"})
    page.run()
    assert not page.table
    press(page, "Show me")
    press(page, "largest terms")
    own = page.session_state["session"]
    routing = own.run().trace.routing
    one, _ = pair(Place(own.run().trace, 1))
    terms = page.table[0].value["x · w"].astype(float)
    assert terms.iloc[-1] == pytest.approx(routing.scores[0, one], abs=2e-3)
    assert terms.iloc[:-1].sum() == pytest.approx(terms.iloc[-1], abs=5e-3)  # each is rounded
    assert terms.iloc[:5].abs().is_monotonic_decreasing
    own.lesson.stop = "bypass"
    page.run()
    press(page, "Show me")
    press(page, "one channel")
    shown = page.table[0].value
    kept, dropped = (shown.iloc[row] for row in (0, 1))
    assert float(kept["out"]) == pytest.approx(float(kept["x"]) + float(kept["added"]), abs=2e-2)
    by_hand = float(kept["a"]) * float(kept["β"]) * float(kept["f(x) − x"])
    assert float(kept["added"]) == pytest.approx(by_hand, rel=0.05, abs=2e-2)
    assert (dropped["out"], float(dropped["a"]), float(dropped["added"])) == (dropped["x"], 0, 0)
    number = page.number_input[-1]
    number.set_value(0 if number.value else 1).run()
    assert page.table[0].value.iloc[0]["x"] != kept["x"]


def test_another_checkpoint_than_that_of_the_run_is_not_measured(tmp_path, monkeypatch):
    traces = {name: saved("TT(T(T)T)T", router, tmp_path / name) for name, router in (("a", "subllm"), ("b", "mod"))}
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = lesson(traces["a"], "break")
    own, box = page.session_state["session"], next(box for box in page.selectbox if "a" in box.options)
    box.select("b").run()
    next(button for button in page.button if button.label == "Show me").click().run()
    assert not page.exception and "Choose tiny" in page.error[0].value
    assert not own.lesson.given and not own.lesson.answers and [run.trace.run for run in own.runs] == [traces["a"].run]
    box = next(box for box in page.selectbox if "a" in box.options)
    box.select("a").run()
    token = key_token(Place(traces["a"]))
    press(page, "Show me")
    asked = own.lesson.given["break"]
    assert asked.tokens == (token,) and own.run().has_model and own.run().trace.subject == traces["a"].subject
    assert [*asked.measured] == [0, *(level for level in (1, 2) if traces["a"].routing.kept[level - 1, token])]


def test_a_checkpoint_that_ships_is_the_same_one_though_each_machine_builds_its_own_file():
    trace = shipped_trace()
    assert trace.provenance.checkpoint in SHIPPED
    here = replace(trace, provenance=replace(trace.provenance, digest="0" * 64, device="another"))
    assert _what_ran(here) == _what_ran(trace)
    for changed in ({"checkpoint": "shipped:small"}, {"structure": "T(T)T"}, {"edits": ("drop 3@1",)}, {"patch": "a"}):
        assert _what_ran(replace(trace, provenance=replace(trace.provenance, **changed))) != _what_ran(trace)


def test_a_run_with_edits_is_made_again_with_them_and_its_last_stop_says_why_not(tmp_path, monkeypatch):
    saved("TT(T(T)T)T", "subllm", tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a", "cpu", "float32")
    rule = Rule("r", "", (Edit.parse("drop 3@1"),))
    trace = record_trace(checkpoint, TEXT, RunOptions(4, rule=rule), dense=load_dense(checkpoint), name="tiny")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = lesson(trace, "break")
    assert table("en")["lesson_has_edits"] in said(page) and not any(b.label == "Check" for b in page.button)
    page = lesson(trace, "grid")
    next(box for box in page.selectbox if "a" in box.options).select("a").run()
    press(page, "Turn routing off")
    assert page.session_state["session"].run().trace.provenance.edits == ("drop 3@1", "dense@*")


def test_attention_is_shown_where_no_block_processes_every_token(tmp_path, monkeypatch):
    trace = saved("((T)T)", "subllm", tmp_path / "a")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = lesson(trace, "inside")
    press(page, "Show me")
    next(box for box in page.selectbox if "a" in box.options).select("a").run()
    press(page, "Show attention of")
    assert "which processes every token" not in said(page) and "inside Level" in said(page)
    assert page.table[0].value.shape[1] == 1


def test_attention_of_an_inner_level_is_beside_a_block_that_processes_every_token(tmp_path, monkeypatch):
    trace = saved("TT(T(T)T)T", "subllm", tmp_path / "a")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = lesson(trace, "inside")
    page.session_state["session"].shown["level"] = "2"
    page.run()
    press(page, "Show me")
    next(box for box in page.selectbox if "a" in box.options).select("a").run()
    press(page, "Show attention of")
    assert "in block 5, which processes every token, and in block 3, inside Level 2" in said(page)


def test_a_lesson_of_ones_own_has_no_link_and_says_to_send_the_file(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "prompt": TEXT, "checkpoint": "tiny", "lesson": "grid", "lang": "en"})
    page.run()
    assert any("pin=1" in code.value for code in page.code)
    page.session_state["session"].lesson.own = replace(LESSON, stops=LESSON.stops[:2])
    page.run()
    assert not any("pin=1" in code.value for code in page.code)
    assert table("en")["lesson_teachers_own"] in " ".join(each.value for each in page.markdown)


def test_fewer_marks_than_asked_for_are_not_judged(trace):
    page = lesson(trace, "editor")
    press(page, "Check")
    dropped = int(trace.routing.dropped[0].sum())
    assert f"Mark {dropped} tokens in the text first; 0 are marked." in said(page)
    assert page.session_state["session"].lesson.answers == {}


def test_strings_of_reasons_are_in_the_table():
    words = json.loads((ASSETS / "strings.json").read_text(encoding="utf-8"))
    for reason in (
        "no_levels", "merges", "heavy", "keeps_all", "keeps_none", "no_scores", "no_nesting", "no_costs",
        "no_continuation", "no_blocks", "has_edits",
    ):  # fmt: skip
        assert f"lesson_{reason}" in words


def test_attention_has_no_column_for_dropped_tokens(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "prompt": TEXT, "checkpoint": "tiny", "lesson": "inside", "lang": "en"})
    page.run()
    press(page, "Show me")
    press(page, "Show attention of")
    table, routing = page.table[0].value, page.session_state["session"].run().trace.routing
    inside = table.columns[1]
    for name, cell in table[inside].items():
        token = int(name.replace("\\", "").rpartition("(")[2].rstrip(")"))
        assert (cell == "no column") == (not routing.kept[0, token]), name
