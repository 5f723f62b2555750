"""The page for debugging, run by Streamlit's own test runner on a real checkpoint."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app.engine import what_if
from app.settings import SMALL
from app.strings import say, table
from tests.app.scripts import script

SCRIPT = script("debug")
TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture
def linked(tiny_checkpoint, monkeypatch):
    """The page, opened by a link with an edit; and how often the model has run with edits."""
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    counted = []
    real = what_if.stages
    monkeypatch.setattr(what_if, "stages", lambda *arguments: counted.append(arguments) or real(*arguments))
    app = AppTest.from_string(SCRIPT, default_timeout=60)
    app.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "edits": "drop 2-4@1"})
    app.run()
    assert not app.exception and not app.error
    return app, counted


def in_force(page):
    own = page.session_state["session"]
    return [str(edit) for edit in own.edits_of(own.run().trace).edits]


def test_a_link_restores_its_edits(linked):
    page, counted = linked
    assert [str(edit) for edit in counted[-1][1]] == in_force(page) == ["drop 2-4@1"]
    assert any("Edits in force" in text.value for text in page.markdown)
    assert any("Other tokens whose decision changed" in text.value for text in page.markdown)


def test_a_link_of_the_old_numbering_is_converted_and_rewritten(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_string(SCRIPT, default_timeout=60)
    page.query_params.update({"checkpoint": "tiny", "prompt": TEXT, "level": "1", "edits": "drop 2-4@0;dense@1"})
    page.run()
    assert not page.exception and not page.error
    assert in_force(page) == ["drop 2-4@1", "dense@2"]
    address = {key: values[0] if isinstance(values, list) else values for key, values in page.query_params.items()}
    assert (address["v"], address["level"], address["edits"]) == ("2", "2", "drop 2-4@1;dense@2")


def test_edits_belong_to_the_run_they_were_made_for(linked):
    page, _ = linked
    page.text_area(key="debug prompt").set_value("another text with 12 numbers")
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception and not page.error
    assert in_force(page) == []
    own = page.session_state["session"]
    own.choose(own.runs[-1].trace.run)
    page.run()
    assert in_force(page) == ["drop 2-4@1"]


def test_the_model_runs_again_for_other_edits_only(linked):
    page, counted = linked
    numbers = page.table[-1].value
    before = len(counted)
    page.run()  # such as after a selection
    assert len(counted) == before
    assert page.table[-1].value.equals(numbers)
    next(button for button in page.button if button.label == "Remove all edits").click().run()
    assert len(counted) == before + 1 and not counted[-1][1]
    assert not page.exception


def test_a_mistake_stays_on_screen_until_the_next_edit(linked):
    page, _ = linked
    page.selectbox(key="new edit kind").set_value("drop")
    page.text_input(key="new edit tokens").set_value("zebras")
    add = next(button for button in page.button if button.label == "Add")
    add.click().run()
    page.run()  # such as after a selection
    assert "names no tokens" in page.error[0].value
    page.text_input(key="new edit tokens").set_value("5")
    next(button for button in page.button if button.label == "Add").click().run()
    assert not page.error and in_force(page) == ["drop 2-4@1", "drop 5@1"]


def test_the_first_edit_of_a_session_stays_in_force(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_string(SCRIPT, default_timeout=60)
    page.session_state["checkpoint"] = "tiny"
    page.run()
    page.text_area(key="debug prompt").set_value(TEXT)
    next(button for button in page.button if button.label == "Run").click().run()
    page.selectbox(key="new edit kind").set_value("dense")
    next(button for button in page.button if button.label == "Add").click().run()
    assert not page.exception and in_force(page) == ["dense@1"]
    assert "dense@1" in page.query_params["edits"]


def test_what_a_selector_offers_is_shown_when_it_is_chosen(linked):
    page, _ = linked
    page.selectbox(key="new edit kind").set_value("dense")
    page.selectbox(key="new edit level").set_value(0)
    next(button for button in page.button if button.label == "Add").click().run()
    assert not page.error and in_force(page) == ["drop 2-4@1", "dense@*"]
    for selector in page.selectbox:
        assert selector.value is not None, f"{selector.label!r} shows nothing"


def field(page, key):
    kinds = (page.slider, page.number_input, page.text_input, page.text_area, page.toggle)
    return next(each for kind in kinds for each in kind if each.key == key)


def open_tab(page, tab):
    page.session_state["debug"] = say(tab)
    page.run()
    assert not page.exception and not page.error


@pytest.mark.parametrize(
    ("tab", "send", "filled"),
    [
        ("tab_steps", None, {"temperature": 0.5, "top p": 0.6, "top k": 5, "repetition": 1.5, "seed": 7}),
        ("tab_patching", "patch_run", {"patch other": "the dog sat", "patch source 7": 1}),
        ("tab_why", "why_run", {"why answer": " cat", "why instead": " dog", "why words": True, "why steps": 64}),
        ("tab_whatif", "edit_add", {"new edit tokens": "5", "new edit number": 0.25}),
        ("tab_whatif", None, {"rule name": "mine", "rule description": "a rule"}),
    ],
)
def test_what_was_filled_in_stays_while_another_tab_is_open(linked, tab, send, filled):
    page, _ = linked
    page.session_state["session"].shown = {"selected": 7, "until": 7}
    open_tab(page, tab)
    for key, value in filled.items():
        field(page, key).set_value(value)
    if send is not None:  # a form keeps what is filled in to itself until it is sent
        next(button for button in page.button if button.label == say(send)).click()
    page.run()
    assert not page.exception and not page.error
    open_tab(page, "tab_beside")
    assert not any(each.key in filled for each in (*page.slider, *page.number_input, *page.text_input))
    open_tab(page, tab)
    assert {key: field(page, key).value for key in filled} == filled


def test_a_sampled_text_stays_while_another_tab_is_open(linked):
    page, _ = linked
    open_tab(page, "tab_steps")
    page.slider(key="temperature").set_value(1.0).run()
    next(button for button in page.button if button.label == "One token").click().run()
    _, (written,) = page.session_state["session"].found["texts"]
    assert len(written.tokens) == 1
    open_tab(page, "tab_beside")
    open_tab(page, "tab_steps")
    assert page.session_state["session"].found["texts"][1] == [written]


def test_a_new_line_break_is_a_word_in_the_table_and_its_numbers_are_numbers(linked, monkeypatch):
    page, _ = linked
    open_tab(page, "tab_steps")
    pieces = "app.views.debug.steps.decode_pieces"
    monkeypatch.setattr(pieces, lambda ids, tokenizer: np.asarray(["\n"] * len(ids), dtype=object))
    next(button for button in page.button if button.label == "One token").click().run()
    assert not page.exception and not page.error
    (row,) = page.dataframe[-1].value.to_dict("records")
    assert row["Text"] == r"'\n'" and 0 < row[table("en")["steps_probability"]] <= 1


def test_a_link_with_the_old_name_of_a_checkpoint_opens_it(monkeypatch, tmp_path):
    """Links once carried the English name that was on screen; now they carry an id."""
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = AppTest.from_string(SCRIPT, default_timeout=120)
    page.query_params.update({"checkpoint": "Small: 10 million parameters, trained from scratch", "prompt": TEXT})
    page.run()
    assert not page.exception and not page.error
    assert page.session_state["session"].run().recipe.model.checkpoint == SMALL
    address = {key: values[0] if isinstance(values, list) else values for key, values in page.query_params.items()}
    assert address["checkpoint"] == SMALL
    page.session_state["language"] = "zh"
    page.run()
    chosen = page.selectbox(key="checkpoint")
    assert chosen.value == SMALL and "小模型：1000 万参数，从头训练" in chosen.options and not page.error
