"""The page that shows training runs, run by Streamlit's own test runner on a run's files."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.analysis.test_training import PROMPTS, write_run

SCRIPT = "from app.views import watch\nwatch.show()\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "one")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path / "runs"))
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception
    return app.selectbox(key="watched").set_value("one").run()


def test_a_run_that_goes_on_is_shown(page):
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Step"] == "20 / 100" and shown["Loss"] == "3.000" and shown["Held-out loss"] == "4.000"
    numbered = [f"{number} · {prompt}" for number, prompt in enumerate(PROMPTS, 1)]
    assert next(box for box in page.selectbox if box.label == "Prompt").options == numbered
    assert page.select_slider(key="watch step").value == 20
    assert not page.exception and not page.error


def test_steps_are_compared(page):
    page.select_slider(key="watch step").set_value(10).run()
    assert not page.exception
    assert len(page.table) == 1  # overlap per level with the step that it stands against


def test_a_broken_snapshot_leaves_the_page_standing(page, tmp_path):
    next((tmp_path / "runs" / "one" / "snapshots").iterdir()).write_bytes(b"nothing")
    page.run()
    assert not page.exception
    assert "not a routing snapshot" in page.error[0].value


def test_the_command_for_a_run_is_shown_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    monkeypatch.setattr("app.settings._SHIPPED", tmp_path)
    page = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not page.exception
    assert "python -m subllm.train" in page.code[0].value


def test_a_run_without_routing_is_said(page, tmp_path):
    folder = tmp_path / "runs" / "dense"
    folder.mkdir()
    about = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"retention_ratios": [], "structure": "TTT"}))
    page.run()
    page.selectbox(key="watched").set_value("dense").run()
    assert not page.exception
    assert "has recorded no routing" in page.info[-1].value
