"""Prompt and answer as one run on the pages, run by Streamlit's own test runner on a real checkpoint."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.strings import say
from tests.app.scripts import script

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
DEBUG = script("debug")
TEXT = "the cat sat on the mat and then"


@pytest.fixture(autouse=True)
def offered(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))


def press(page, label):
    next(button for button in page.button if button.label == label).click().run()
    assert not page.exception and not page.error


def shown_run(page):
    return page.session_state["session"].run()


def test_a_continuation_on_explore_becomes_a_run_that_says_where_the_answer_begins():
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT})
    page.run()
    before = shown_run(page).trace
    assert before.continuation is not None
    press(page, say("answer_run"))
    run = shown_run(page)
    assert run.trace.provenance.answer_from == before.num_tokens
    assert run.trace.prompt.token_ids.tolist() == [*before.prompt.token_ids.tolist(), *before.continuation.ids.tolist()]
    first, last = before.num_tokens, run.trace.num_tokens - 1
    assert say("answer_from", first=first, last=last) in [caption.value for caption in page.caption]
    table = next(table.value for table in page.table if say("answer_answer") in table.value)
    kept = run.trace.routing.kept[0]
    assert table.iloc[0].tolist() == [f"{kept[:first].sum()} / {first}", f"{kept[first:].sum()} / {last - first + 1}"]
    assert ("prompt" in page.query_params) == run.recipe.again


def test_a_text_written_step_by_step_under_edits_becomes_a_run_with_them():
    page = AppTest.from_string(DEBUG, default_timeout=60)
    page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "edits": "drop 'cat'@1"})
    page.session_state["debug"] = say("tab_steps")
    page.run()
    press(page, say("steps_one"))
    press(page, say("steps_one"))
    before = shown_run(page).trace
    press(page, say("answer_run"))
    found = shown_run(page).trace
    assert found.num_tokens == before.num_tokens + 2
    assert found.provenance.edits == ("drop 1@1",)
    assert not found.routing.kept[0, 1]
