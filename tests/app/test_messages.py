"""What the app says while it works, run by Streamlit's own test runner."""

import pandas as pd
import pyarrow as pa
from streamlit.testing.v1 import AppTest

from app.messages import sortable

SCRIPT = """
import streamlit as st
from app.messages import ProgressBar

progress = ProgressBar()
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
    app = AppTest.from_string(SCRIPT, default_timeout=60)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


def bars(app):
    return [bar.proto.text for bar in app.get("progress")]


def test_progress_that_is_told_more_after_its_end_is_drawn_anew():
    assert bars(run()) == ["Runs ahead of yours\\: 2"]


def test_progress_that_moves_leaves_nothing_behind():
    assert bars(run(move=True)) == ["Runs ahead of yours\\: 3"]


def test_progress_that_is_cleared_shows_nothing():
    assert bars(run(move=True, clear=True)) == []
    assert bars(run(clear=True)) == []


ERRORS = """
from pathlib import Path
from app.messages import bounded, show_error
from subllm import CheckpointError
from subllm.checkpoints.load import load_checkpoint

root = Path(ROOT)
(root / "broken").mkdir(exist_ok=True)
for folder in ("broken", "gone"):
    try:
        load_checkpoint(root / folder, "cpu", "float32")
    except CheckpointError as error:
        show_error(error)
show_error(CheckpointError(f"{root}/broken/config.json cannot be read; {root} is full, and so is {Path.home()}."))

@bounded
def fragment(error):
    raise error

fragment(CheckpointError("said"))
fragment(ValueError("not said"))
"""


def test_a_message_does_not_tell_where_things_are_and_a_fragments_faults_stay_inside(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    app = AppTest.from_string(ERRORS.replace("ROOT", repr(str(tmp_path))), default_timeout=60).run()
    assert not app.exception
    said = [each.value.replace("\\", "") for each in app.error]
    assert len(said) == 5
    assert "broken" in said[0] and "gone" in said[1]
    assert said[2] == "broken/config.json cannot be read; … is full, and so is …."
    assert said[3] == "said" and "went wrong" in said[4]
    assert not [each for each in said if str(tmp_path) in each or "not said" in each]


def test_a_table_is_sorted_by_numbers_and_shows_what_they_are_written_as():
    rows = pd.DataFrame({"name": ["a", "b"], "share": [-0.25, 0.125], "value": [3.0, 1.0]})
    shown = sortable(rows, {"share": "+.1%", "value": ["3 [2, 4]", "1 [0, 2] ✓"]})
    app = AppTest.from_string("import streamlit as st\nst.dataframe(st.session_state['shown'])", default_timeout=60)
    app.session_state["shown"] = shown
    (drawn,) = app.run().dataframe
    assert drawn.value["share"].tolist() == [-0.25, 0.125] and drawn.value["value"].tolist() == [3.0, 1.0]
    written = pa.ipc.open_stream(drawn.proto.arrow_data.styler.display_values).read_pandas()
    assert written["share"].tolist() == ["-25.0%", "+12.5%"]
    assert written["value"].tolist() == ["3 [2, 4]", "1 [0, 2] ✓"] and written["name"].tolist() == ["a", "b"]
