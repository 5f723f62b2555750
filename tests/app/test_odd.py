"""Flags on the page, run by Streamlit's own test runner."""

from streamlit.testing.v1 import AppTest

from analysis.run import RunOptions, record_trace
from analysis.trace.trace import Trace
from subllm.checkpoints.load import load_checkpoint


def draw(trace):
    from app.views.trace import odd

    odd.show(trace)


def shown(trace, language="en"):
    page = AppTest.from_function(draw, args=(trace,), default_timeout=60)
    page.session_state["language"] = language
    page.run()
    assert not page.exception
    return page


def recorded(folder):
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    return record_trace(checkpoint, "the cat <eos> sat on the mat and then the dog", RunOptions(0, False))


def test_flags_are_listed_in_the_language_of_the_page(odd_checkpoints):
    trace: Trace = recorded(odd_checkpoints / "everything")
    page = shown(trace)
    assert page.expander[0].label == "Worth a look: 4"
    assert page.markdown[0].value.splitlines()[0] == "- Level 1 keeps every token that reaches it\\."
    assert "第 1 级保留了到达它的全部词元" in shown(trace, "zh").markdown[0].value
    nothing = shown(recorded(odd_checkpoints / "nothing"))
    assert "Level 1 keeps no token" in nothing.markdown[0].value


def test_nothing_is_said_where_nothing_is_odd(odd_checkpoints):
    assert not shown(recorded(odd_checkpoints / "no-levels")).expander
