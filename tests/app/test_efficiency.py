"""The page about savings, run by Streamlit's own test runner on a real checkpoint."""

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")


def page(function):
    """An app of one page."""
    return AppTest.from_function(function, default_timeout=120)


def efficiency():
    from app.views import efficiency

    efficiency.show()


@pytest.fixture
def opened(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "600")
    app = page(efficiency)
    app.session_state["checkpoint"] = "tiny"
    app.run()
    assert not app.exception
    return app


def test_lengths_that_the_operator_allows_are_measured_and_kept(opened):
    lengths = opened.multiselect(key="lengths")
    assert lengths.options == ["512"]
    assert "--lengths 512" in opened.code[0].value
    opened.slider(key="repeats").set_value(1).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert not opened.exception
    table, levels = opened.table
    assert list(table.value.index) == ["512"]
    assert len(levels.value) == 4, "outside, two levels, dense"
    assert re.fullmatch(r"\d\.\d\d×", table.value.iloc[0]["Reading, speed-up"])
    ((before,),) = [found.values() for found in opened.session_state["measured"].values() if found]
    next(b for b in opened.button if b.label == "Measure").click().run()
    ((again,),) = [found.values() for found in opened.session_state["measured"].values() if found]
    assert again.seconds != before.seconds


def test_a_length_beyond_the_positions_is_said(opened, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "2048")
    opened.run()
    opened.multiselect(key="lengths").set_value([2048]).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    said = opened.error[0].value.replace("\\", "")
    assert re.search(r"2,048 tokens cannot be measured; allowed are 1 to 512", said)


def test_a_sweep_goes_on_where_it_was_and_opens_again(opened, monkeypatch):
    monkeypatch.setattr("app.views.measured.LENGTHS", (16, 64))
    opened.run()
    opened.multiselect(key="lengths").set_value([16]).run()
    opened.slider(key="repeats").set_value(1).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    opened.multiselect(key="lengths").set_value([16, 64]).run()
    opened.multiselect(key="batches").set_value([1, 2]).run()
    opened.multiselect(key="shares").set_value([0.0, 0.5]).run()
    assert "--batches 1 2 --retentions 0.0 0.5" in opened.code[0].value
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert not opened.exception
    assert len(opened.table[0].value) == 8
    assert "2 × 64 at 50%" in opened.table[0].value.index
    (found,) = [each for each in opened.session_state["measured"].values() if each]
    monkeypatch.setattr("analysis.comparison.free_bytes", lambda device: 1000)
    opened.multiselect(key="batches").set_value([4]).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert "take a smaller batch" in opened.error[0].value
    assert len(found) == 8, "what was measured is kept"
