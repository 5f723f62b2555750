"""Runs from files in the page: shown whole without a model, bounded, and kept beside one's own; and notes."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analysis import Trace
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from app.shipped_run import shipped_trace
from app.state import Elsewhere
from subllm.checkpoints.load import load_checkpoint
from tests.analysis.trace.test_trace import make_trace

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")


@pytest.fixture
def page(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    return AppTest.from_file(MAIN, default_timeout=60).run()


def saved(trace):
    file = io.BytesIO()
    trace.save(file)
    return file.getvalue()


def opened(page, data):
    next(each for each in page.get("file_uploader") if each.key == "run file").upload(
        "run.npz", data, "application/octet-stream"
    )
    return page.run()


def said(page):
    kinds = ("info", "caption", "error")
    return " ".join(element.value for kind in kinds for element in getattr(page, kind)).replace("\\", "")


def session(page):
    return page.session_state["session"]


def test_a_run_from_a_file_is_shown_whole_without_its_model(page, tiny_checkpoint):
    trace = record_trace(load_checkpoint(tiny_checkpoint, "cpu", "float32"), "the cat sat", RunOptions(3, False))
    opened(page, saved(replace(trace, note="mine")))
    assert not page.exception and not page.error
    assert "was opened from a file" in said(page)
    assert {metric.label: metric.value for metric in page.metric}["Prompt tokens"] == str(trace.num_tokens)
    (run,) = session(page).runs
    assert (run.origin, run.trace.digest, run.trace.note) == (Elsewhere.FILE, trace.digest, "mine")
    assert page.text_area(key=f"note {trace.run}").value == "mine"
    assert [*page.query_params] == ["lang"], "no link can open it"


def test_the_prompt_of_a_run_from_a_file_can_be_run_here(page, tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    prompt = read_prompt("the cat sat", checkpoint.tokenizer, 512, chat=True)
    trace = record_trace(checkpoint, prompt, RunOptions(0, False))
    page.toggle(key="chat").set_value(True)
    opened(page, saved(trace))
    page.button(key="fill in").click().run()
    assert page.text_area(key="prompt").value == trace.prompt.text != "the cat sat"
    assert not page.toggle(key="chat").value
    page.selectbox(key="checkpoint").set_value("tiny")
    next(button for button in page.button if button.label == "Run").click().run()
    run = session(page).run()
    assert run.has_model
    np.testing.assert_array_equal(run.trace.prompt.token_ids, trace.prompt.token_ids)


def test_a_run_into_which_a_state_was_put_says_so(page):
    trace = make_trace()
    opened(page, saved(replace(trace, provenance=replace(trace.provenance, patch="token 0 of *another* prompt"))))
    assert "State put in: token 0 of *another* prompt" in said(page)
    assert session(page).run().name.endswith("token 0 of *another* prompt")


@pytest.mark.parametrize("structure", ["TT", "T(T)T", "T(T(T)T)(T)"])
@pytest.mark.parametrize(
    "parts", [(), ("agreement",), ("costs", "likelihood"), ("blocks", "predictions", "continuation")]
)
def test_whatever_parts_a_file_has_the_page_shows_them(page, structure, parts):
    opened(page, saved(make_trace(structure, parts=parts)))
    assert not page.exception and not page.error
    assert len(session(page).runs) == 1


def test_it_stands_beside_ones_own_runs_and_is_never_mixed_with_them(page):
    shipped = shipped_trace()
    opened(page, saved(shipped))
    page.selectbox(key="checkpoint").set_value("tiny")
    page.text_area(key="prompt").set_value("the cat sat on the mat")
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception and not page.error
    own, other = session(page).runs
    assert own.has_model and not other.has_model
    session(page).choose(other.trace.run)
    page.run()
    assert "was opened from a file" in said(page)


def test_ones_own_run_keeps_its_model_when_it_is_opened_again_and_takes_the_files_note(page):
    page.selectbox(key="checkpoint").set_value("tiny")
    page.text_area(key="prompt").set_value("the cat sat on the mat")
    next(button for button in page.button if button.label == "Run").click().run()
    before = session(page).run()
    opened(page, saved(replace(before.trace, note="mine", likelihood=None)))
    assert not page.exception and not page.error
    (run,) = session(page).runs
    assert run.has_model and run.number == before.number and run.trace.likelihood is before.trace.likelihood
    assert page.text_area(key=f"note {run.trace.run}").value == run.trace.note == "mine"
    assert "was opened from a file" not in said(page)


def test_a_note_about_a_run_from_a_file_stays_when_the_run_is_made_here(page):
    page.selectbox(key="checkpoint").set_value("tiny")
    page.text_area(key="prompt").set_value("the cat sat on the mat")
    next(button for button in page.button if button.label == "Run").click().run()
    trace = session(page).run().trace
    other = AppTest.from_file(MAIN, default_timeout=60).run()
    opened(other, saved(trace))
    other.text_area(key=f"note {trace.run}").set_value("mine").run()
    other.selectbox(key="checkpoint").set_value("tiny")
    other.text_area(key="prompt").set_value("the cat sat on the mat")
    next(button for button in other.button if button.label == "Run").click().run()
    (run,) = session(other).runs
    assert run.has_model and run.trace.run == trace.run
    assert other.text_area(key=f"note {trace.run}").value == run.trace.note == "mine"


@pytest.mark.parametrize("data", [b"no zip", saved(make_trace())[:-200]])
def test_what_is_no_run_is_said_and_the_run_before_stays(page, data):
    before = session(page).run()
    opened(page, data)
    assert "This is not a run saved by this app" in said(page) and not page.exception
    assert session(page).run() is before


def test_a_run_of_more_tokens_than_the_operator_allows_is_said(page, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "4")
    opened(page, saved(make_trace(tokens=5)))
    assert "The run has 5 tokens; at most 4 are shown here" in said(page)


def test_edits_that_cannot_be_read_are_said_and_the_run_is_not_opened(page):
    trace = make_trace()
    opened(page, saved(replace(trace, provenance=replace(trace.provenance, edits=("explode @1",)))))
    assert page.error and not page.exception
    assert session(page).run().origin is Elsewhere.SHIPPED


def test_a_file_may_be_as_large_as_the_server_takes(page):
    (uploader,) = [each for each in page.get("file_uploader") if each.key == "run file"]
    assert uploader.proto.max_upload_size_mb == st.get_option("server.maxUploadSize")


def test_no_file_can_be_opened_where_uploads_are_switched_off(page, monkeypatch):
    monkeypatch.setenv("SUBLLM_FEATURES", "none")
    assert not page.run().get("file_uploader")


def test_a_note_goes_into_the_file_and_stays_with_its_run(page):
    trace = shipped_trace()
    text = "look at <b>$this$</b>\n你好"
    page.text_area(key=f"note {trace.run}").set_value(text).run()
    assert not page.exception
    noted = session(page).run().trace
    assert (noted.note, noted.digest) == (text, trace.digest)
    assert Trace.load(io.BytesIO(saved(noted))).note == text
    assert trace.completed(noted).note == text, "the run is made again"
    assert shipped_trace().note == "", "nobody else sees it"
