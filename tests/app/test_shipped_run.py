"""The run that the app opens with: it is that of the first example, says where it was measured, and gives way."""

import json
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis import AnalysisError
from app.settings import DEMO
from app.shipped_run import FILE, shipped_trace
from app.state import Elsewhere
from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
from subllm.demo import SHIPPED
from tests.app.scripts import script

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
DEBUG = script("debug")
LABEL = "This is an example that comes with the app"


@pytest.fixture
def opened(tiny_checkpoint, monkeypatch, tmp_path):
    """The app as somebody opens it who has no demo checkpoint."""
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("SUBLLM_HOME", str(tmp_path))
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception and not app.error
    return app


def said(page):
    kinds = ("info", "caption", "subheader", "markdown")
    return " ".join(element.value for kind in kinds for element in getattr(page, kind)).replace("\\", "")


def session(page):
    return page.session_state["session"]


def run(page, text):
    page.selectbox(key="checkpoint").set_value("tiny")
    page.text_area(key="prompt").set_value(text)
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception and not page.error


def test_it_is_a_whole_run_of_the_first_example_by_the_demo_that_ships():
    first, trace = json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))[0], shipped_trace()
    config = read_config(SHIPPED["demo"])
    assert (trace.prompt.text, trace.provenance.checkpoint) == (first["text"], DEMO)
    assert trace.provenance.structure == str(config.structure) and not trace.provenance.edits
    assert np.allclose(trace.routing.retention_ratios, config.retention_ratios)
    assert None not in (trace.likelihood, trace.predictions, trace.continuation, trace.agreement, trace.costs)
    assert trace.blocks is not None and trace.blocks.confidence is not None
    assert FILE.stat().st_size < 100_000


def test_explore_opens_with_it_and_no_model_is_made_or_loaded(opened, tmp_path):
    trace = shipped_trace()
    assert LABEL in said(opened) and trace.provenance.device in said(opened)
    assert {metric.label: metric.value for metric in opened.metric}["Prompt tokens"] == str(trace.num_tokens)
    assert session(opened).run().origin is Elsewhere.SHIPPED
    assert not list(tmp_path.iterdir())
    with pytest.raises(AnalysisError, match="needs the model"):
        _ = session(opened).run().recipe


def test_what_needs_the_model_says_so_and_nothing_fails(opened):
    session(opened).shown = {"selected": "3"}
    opened.run()
    assert not opened.exception and not opened.error
    assert said(opened).count("This needs the model") == 2  # the token in depth, and the rules compared
    assert not [button for button in opened.button if button.key in ("follow", "rivals")]


def test_the_first_own_run_takes_its_place(opened):
    run(opened, "the cat sat on the mat")
    assert LABEL not in said(opened)
    (own,) = session(opened).runs
    assert own.number == 1 and own.recipe.text == "the cat sat on the mat"


def test_nothing_measured_elsewhere_passes_for_ones_own():
    """The same prompt, checkpoint, device and versions: only what was measured here may complete it."""
    page = AppTest.from_string(DEBUG, default_timeout=60).run()
    own, shipped = session(page), shipped_trace()
    bare = type(shipped)(shipped.prompt, shipped.routing, shipped.provenance)
    own.remember(bare, Elsewhere.FILE)
    assert own.run().trace.costs is None


def test_a_run_that_fails_leaves_it_on_screen(opened):
    opened.selectbox(key="checkpoint").set_value("tiny")
    opened.text_area(key="prompt").set_value("")
    next(button for button in opened.button if button.label == "Run").click().run()
    assert "is empty" in opened.error[0].value
    assert LABEL in said(opened) and opened.metric


def test_debug_opens_with_it_and_every_tab_shows_something(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_string(DEBUG, default_timeout=60).run()
    for tab in ("What if", "Why", "Step by step", "Side by side"):
        page.session_state["debug"] = tab
        page.run()
        assert not page.exception and not page.error
        assert LABEL in said(page)
        assert "This needs the model" in said(page) or tab == "Side by side"


def test_an_address_of_it_keeps_what_is_shown_and_asks_for_no_run(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update({"level": "2", "selected": "5"})
    page.run()
    assert not page.exception and not page.error
    address = {key: values[0] if isinstance(values, list) else values for key, values in page.query_params.items()}
    assert address == {"level": "2", "selected": "5", "until": "5", "lang": "en"}
