"""What the app says while it works, run by Streamlit's own test runner."""

from streamlit.testing.v1 import AppTest

SCRIPT = """
import streamlit as st
from app.messages import ProgressBar

progress = ProgressBar("stop")
st.write("between")
with progress:
    progress(0.2, "waiting", ahead=1)
progress(0.4, "waiting", ahead=2)  # a later stage tells it after its place was cleared
if "move" in st.session_state:
    progress.move()
    progress(0.6, "waiting", ahead=3)
if "clear" in st.session_state:
    progress.clear()
"""


def run(**state):
    app = AppTest.from_string(SCRIPT)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


def bars(app):
    return [bar.proto.text for bar in app.get("progress")]


def test_progress_that_is_told_more_after_its_end_is_drawn_anew_with_its_button():
    app = run()
    assert bars(app) == ["Runs ahead of yours\\: 2"]
    assert [button.label for button in app.button] == ["Stop"]


def test_progress_that_moves_leaves_nothing_behind():
    assert bars(run(move=True)) == ["Runs ahead of yours\\: 3"]


def test_progress_that_is_cleared_shows_nothing():
    assert bars(run(move=True, clear=True)) == []
    assert bars(run(clear=True)) == []
