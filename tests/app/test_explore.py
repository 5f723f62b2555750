"""The page, run by Streamlit's own test runner on a real checkpoint."""

import re
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import visitors
from app.messages import ProgressBar
from app.state import Elsewhere
from app.views.chooser import examples, first_form

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")


@pytest.fixture
def page(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    app.selectbox[0].set_value("tiny").run()
    return app


def run(page, text):
    page.text_area(key="prompt").set_value(text)
    return button(page, "Run").click().run()


def button(page, label):
    return next(b for b in page.button if label in b.label)


def metrics(page):
    return {metric.label: metric.value for metric in page.metric}


def test_a_prompt_runs_and_its_numbers_are_shown(page):
    run(page, "the cat sat on the mat and then the dog")
    assert not page.exception
    assert not page.error
    shown = metrics(page)
    assert re.fullmatch(r"\d+", shown["Prompt tokens"])
    assert {"Level 1 keeps", "Level 2 keeps", "Prefill", "Work"} <= set(shown)
    assert len(page.dataframe) == 2  # next tokens, and segments
    assert len(page.table) == 2
    assert "Measured with CPU" in " ".join(caption.value for caption in page.caption)


def test_an_example_chosen_together_with_typed_text_is_filled_in(page):
    second = [*examples()][1]
    page.text_area(key="prompt").set_value("typed in the same moment")
    page.pills(key="example").set_value(second).run()
    assert page.text_area(key="prompt").value == examples()[second]["text"]
    assert page.session_state["session"].form.example == second
    page.text_area(key="prompt").set_value("typed later").run()
    assert page.text_area(key="prompt").value == page.session_state["session"].form.text == "typed later"


def test_the_chip_of_an_example_brings_its_text_back_and_touches_no_text_that_is_just_being_typed(page):
    first = first_form()
    page.text_area(key="prompt").set_value("my own").run()
    page.pills(key="example").set_value(None).run()
    assert page.text_area(key="prompt").value == page.session_state["session"].form.text == first.text
    assert page.pills(key="example").value == page.session_state["session"].form.example == first.example
    page.text_area(key="prompt").set_value("typed before the page had answered")
    page.pills(key="example").set_value(None).run()  # as a browser sends the click again
    assert page.text_area(key="prompt").value == "typed before the page had answered"
    page.pills(key="example").set_value(first.example).run()
    page.pills(key="example").set_value(None).run()
    assert page.pills(key="example").value is None, "there is nothing to bring back"
    assert page.text_area(key="prompt").value == first.text


def _ended_by(press):
    """A progress bar that a click on the page ends at the fourth new token, as Streamlit ends a script."""

    def draw(bar, share, stage, **values):
        if stage == "continuing" and values["done"] == 3:
            press()
            st.stop()

    return draw


@pytest.mark.parametrize("stopped", [True, False])
def test_a_run_that_is_ended_keeps_its_tokens_and_says_why_unless_the_visitor_stopped_it(page, monkeypatch, stopped):
    text = f"the cat sat on a mat {'until' if stopped else 'before'} the dog"  # a run of its own, as they are kept
    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "__call__", _ended_by(visitors.note_stop if stopped else lambda: None))
        run(page, text)
    said = "The run was stopped after 3 new tokens"
    page.run()
    assert any(said in caption.value for caption in page.caption)
    assert len(page.session_state["session"].run().trace.continuation.ids) == 3
    assert bool(page.warning) != stopped
    page.toggle(key="chat").set_value(True).run()
    page.toggle(key="chat").set_value(False).run()
    assert bool(page.warning) != stopped, "it is said until another run is made"
    run(page, text)
    assert not page.warning and not any(said in caption.value for caption in page.caption)
    assert len(page.session_state["session"].run().trace.continuation.ids) > 3


def test_a_rerun_does_not_run_the_model_again(page, monkeypatch):
    run(page, "the cat sat on the mat")
    before = page.session_state["session"].runs[0].trace
    run(page, "the cat sat on the mat")
    assert page.session_state["session"].runs[0].trace is before
    run(page, "the dog sat on the mat")
    assert page.session_state["session"].runs[0].trace is not before


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("  \n ", "white space only")])
def test_a_bad_prompt_is_said_and_the_last_result_stays(page, text, message):
    run(page, "the cat sat")
    before = metrics(page)
    run(page, text)
    assert message in page.error[0].value.replace("\\", "")
    assert metrics(page) == before
    assert not page.exception


def test_a_long_prompt_offers_to_be_cut(page, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "40")
    run(page, "xyz " * 60)
    said = " ".join(error.value for error in page.error).replace("\\", "")
    assert re.search(r"has \d+ tokens; at most 40 fit", said)
    page.text_area(key="prompt").set_value("the cat").run()
    assert not page.error, "the message is about another prompt"
    page.text_area(key="prompt").set_value("xyz " * 60).run()
    button(page, "Run the first 40").click().run()
    assert metrics(page)["Prompt tokens"] == "40"
    assert not page.error
    cut = page.session_state["session"].run()
    assert cut.recipe.text == cut.trace.prompt.text and ("xyz " * 60).startswith(cut.recipe.text)
    assert page.query_params["prompt"] in (cut.recipe.text, [cut.recipe.text]), "the link makes the same run"
    assert page.text_area(key="prompt").value == "xyz " * 60, "what was typed stays"


def test_a_failure_goes_when_another_run_is_shown(page):
    run(page, "the cat sat")
    run(page, "the dog sat")
    run(page, "")
    assert "is empty" in page.error[0].value
    (selector,) = [box for box in page.selectbox if box.label == "Earlier runs in this session"]
    selector.set_value(next(each for each in selector.options if "the cat" in each)).run()
    assert not page.error and page.session_state["session"].run().trace.prompt.text == "the cat sat"


def test_the_time_limit_is_said(page, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_SECONDS", "0.000001")
    run(page, "the cat sat on a mat that nobody saw")
    assert "time limit" in page.error[0].value


def test_markdown_in_text_is_shown_as_it_is(page):
    text = "$x$ **bold** <b>html</b> `code` :smile:"
    run(page, text)
    run(page, "another")  # then the first one is a choice of the selector, and its text is on the page
    assert not page.exception and not page.error
    (selector,) = [box for box in page.selectbox if box.label == "Earlier runs in this session"]
    assert any(repr(text) in option for option in selector.options)
    shown = [element.value for kind in ("markdown", "caption") for element in getattr(page, kind)]
    assert not any("**bold**" in value or "<b>" in value or "$x$" in value for value in shown)


def linked(**fields):
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update(fields)
    page.run()
    assert not page.exception
    return page, page.session_state["session"].run()


def test_a_link_with_a_checkpoint_but_no_prompt_runs_the_first_example(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page, run = linked(checkpoint="tiny", level="1")
    assert not page.error
    assert run.trace.provenance.checkpoint == "tiny"
    assert run.recipe.text == page.text_area(key="prompt").value == first_form().text
    assert page.session_state["session"].shown["level"] == "1"  # such links never counted levels from 0


def test_a_link_without_a_prompt_to_a_checkpoint_that_is_not_offered_says_so_and_shows_the_shipped_run():
    page, run = linked(checkpoint="nowhere")
    assert "nowhere" in page.error[0].value
    assert run.origin is Elsewhere.SHIPPED
    assert "nowhere" in page.run().error[0].value, "not only for one pass of the script"


def test_what_a_link_of_another_version_asked_for_is_said_beside_its_run(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page, run = linked(checkpoint="tiny", prompt="the cat", v="9", edits="drop 1@1", made="drop 1@1")
    for each in (page, page.run()):
        (error,) = each.error
        assert "another version" in error.value and run.trace.provenance.edits == ()
