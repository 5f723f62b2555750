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
    (lengths,) = opened.multiselect
    assert lengths.options == ["512"]
    assert "--lengths 512" in opened.code[0].value
    opened.slider(key="repeats").set_value(1).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert not opened.exception
    (table,) = opened.table
    assert list(table.value.index) == ["512"]
    assert re.fullmatch(r"\d\.\d\d×", table.value.iloc[0]["Reading, speed-up"])
    ((before,),) = [found.values() for found in opened.session_state["measured"].values() if found]
    next(b for b in opened.button if b.label == "Measure").click().run()
    ((again,),) = [found.values() for found in opened.session_state["measured"].values() if found]
    assert again.seconds != before.seconds


def test_a_length_beyond_the_positions_is_said(opened, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "2048")
    opened.run()
    opened.multiselect[0].set_value([2048]).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    said = opened.error[0].value.replace("\\", "")
    assert re.search(r"2,048 tokens cannot be measured; allowed are 1 to 512", said)
