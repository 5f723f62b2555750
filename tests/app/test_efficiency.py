"""The page about savings, run by Streamlit's own test runner on a real checkpoint."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import app.views.efficiency.measured as measured_view
import app.views.efficiency.predicted as predicted_view
from analysis.cost.sweep import from_parquet
from app.settings import DEMO
from app.strings import table
from subllm import SubllmConfig
from subllm.assets import ASSETS
from subllm.demo import SHIPPED, demo_folder
from tests.app.scripts import script


def page(function):
    """An app of one page."""
    return AppTest.from_function(function, default_timeout=120)


def measured(page):
    """The one sweep of the session."""
    (sweep,) = page.session_state["session"].found["measured"][1].values()
    return sweep


def measure(page):
    next(button for button in page.button if button.label == "Measure").click().run()
    assert not page.exception and not page.error


def structure(page):
    """The field of the structure."""
    return next(box for box in page.text_input if box.label == table("en")["structure"])


def retention(page):
    """The slider of the retention."""
    return next(slider for slider in page.slider if slider.label == table("en")["retention_slider"])


def predicted(page):
    """The page with its other tab open."""
    page.session_state["efficiency"] = "Predicted"
    page.run()
    assert not page.exception
    return page


@pytest.fixture
def opened(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "600")
    app = AppTest.from_string(script("efficiency"), default_timeout=120)
    app.session_state["checkpoint"] = "tiny"
    app.run()
    assert not app.exception
    return app


def test_the_page_opens_on_shipped_measurements_which_say_so_and_give_way(opened):
    (label,) = opened.info
    assert "come with the app" in label.value and "another machine" in label.value
    _, rows = from_parquet((ASSETS / "benchmarks" / "cpu-float32.parquet").read_bytes())
    assert [*opened.table[0].value.index] == [f"{row.tokens:,}" for row in rows]
    opened.slider(key="repeats").set_value(1).run()
    measure(opened)
    assert not opened.info and [*opened.table[0].value.index] == ["512"]


def test_the_last_measurements_stay_and_are_labelled_when_something_else_is_chosen(opened, monkeypatch):
    monkeypatch.setattr("app.views.efficiency.measured.LENGTHS", (16, 64))
    opened.run()

    def shown():
        assert not opened.exception and not opened.error
        said = [info.value.replace("\\", "") for info in opened.info]
        return said, [*opened.table[0].value.index], [each.label for each in opened.get("download_button")]

    for repeats, length in ((1, 16), (2, 64)):
        opened.multiselect(key="lengths").set_value([length])
        opened.slider(key="repeats").set_value(repeats).run()
        measure(opened)
        assert shown()[:2] == ([], [str(length)])
    opened.slider(key="repeats").set_value(5).run()
    (said,), lengths, buttons = shown()
    assert said.startswith("Nothing has been measured with these choices yet.")
    assert "Checkpoint: tiny" in said and "Timed passes per model: 2" in said
    assert lengths == ["64"] and table("en")["save_measured"] in buttons
    opened.slider(key="repeats").set_value(1).run()
    assert shown()[:2] == ([], ["16"])
    opened.selectbox(key="checkpoint").set_value(DEMO).run()
    assert shown()[1] == ["64"] and "Checkpoint: tiny" in shown()[0][0]


def test_lengths_that_the_operator_allows_are_measured_and_kept(opened):
    lengths = opened.multiselect(key="lengths")
    assert lengths.options == ["512"]
    assert "--lengths 512" in opened.code[0].value
    opened.slider(key="repeats").set_value(1).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert not opened.exception
    numbers, levels = opened.table
    assert list(numbers.value.index) == ["512"]
    assert len(levels.value) == 4, "outside, two levels, dense"
    assert re.fullmatch(r"\d\.\d\d×", numbers.value.iloc[0]["Prefill speed-up"])
    (before,) = measured(opened).sorted()
    next(b for b in opened.button if b.label == "Measure").click().run()
    (again,) = measured(opened).sorted()
    assert again.seconds != before.seconds


def test_a_length_beyond_the_positions_is_said(opened, monkeypatch):
    monkeypatch.setenv("SUBLLM_MAX_TOKENS", "2048")
    opened.run()
    opened.multiselect(key="lengths").set_value([2048]).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    said = opened.error[0].value.replace("\\", "")
    assert re.search(r"2,048 tokens cannot be measured; allowed are 1 to 512", said)


def test_a_sweep_goes_on_where_it_was_and_opens_again(opened, monkeypatch):
    monkeypatch.setattr("app.views.efficiency.measured.LENGTHS", (16, 64))
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
    found = measured(opened).rows
    monkeypatch.setattr("analysis.cost.comparison.free_bytes", lambda device: 1000)
    opened.multiselect(key="batches").set_value([4]).run()
    next(b for b in opened.button if b.label == "Measure").click().run()
    assert "Use a smaller batch" in opened.error[0].value
    assert len(found) == 8, "what was measured is kept"


def test_a_rerun_that_changed_nothing_opens_no_file_and_builds_none(opened, opened_files, tiny_checkpoint, monkeypatch):
    built = []
    monkeypatch.setattr("app.views.efficiency.measured.to_parquet", lambda *arguments: built.append(arguments))
    opened.slider(key="repeats").set_value(1).run()
    measure(opened)
    tables = len(opened.table)
    predicted(opened)
    opened_files.clear()
    for tab in ("Predicted", table("en")["measured_tab"], "Predicted"):
        opened.session_state["efficiency"] = tab
        opened.run()
        assert not opened.exception and not opened.error
        assert len(opened.table) == (6 if tab == "Predicted" else tables)
    places = (tiny_checkpoint.resolve(), SHIPPED["demo"].parent, Path("/proc"))
    assert [path for path in opened_files if {*path.resolve().parents} & {*places}] == []
    assert not built, "the file to download is made when it is asked for"


def test_a_prediction_is_worked_out_once_for_the_same_choices(opened, monkeypatch):
    asked = []
    real = predicted_view.break_even
    monkeypatch.setattr(predicted_view, "break_even", lambda *given: asked.append(given) or real(*given))
    predicted(opened)
    first = len(asked)
    opened.run()
    assert first and len(asked) == first
    retention(opened).set_value(50).run()
    assert len(asked) == 2 * first


def test_a_prediction_for_the_demo_builds_and_fetches_nothing(opened, monkeypatch):
    monkeypatch.setattr("subllm.demo.build_demo", lambda *_: pytest.fail("it was built"))
    opened.selectbox(key="checkpoint").set_value(DEMO).run()
    predicted(opened)
    assert len(opened.table) == 6 and not opened.error
    assert structure(opened).value.startswith("TTTTTTTT(TTT(")
    assert not demo_folder().exists()


def test_a_prediction_begins_with_the_structure_of_the_chosen_checkpoint(opened, tiny_checkpoint):
    own = json.loads((tiny_checkpoint / "config.json").read_text())["structure"]
    predicted(opened)
    assert structure(opened).value == own
    structure(opened).set_value("T(TT)T").run()
    opened.selectbox(key="checkpoint").set_value(DEMO).run()
    assert structure(opened).value == json.loads((SHIPPED["demo"] / "config.json").read_text())["structure"]
    opened.selectbox(key="checkpoint").set_value("tiny").run()
    assert structure(opened).value == "T(TT)T", "what was typed for a checkpoint stays"
    assert not opened.exception and not opened.error


def test_a_prediction_begins_with_the_retention_of_the_chosen_checkpoint(monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(ASSETS))
    page = AppTest.from_string(script("efficiency"), default_timeout=120)
    for name, percent in (("small/final", 64), ("routers/mixture-of-depths/final", 50)):
        page.session_state["checkpoint"] = name
        page.run()
        predicted(page)
        assert retention(page).value == percent and not page.exception and not page.error


def test_a_prediction_builds_no_configuration_for_every_length(opened, monkeypatch):
    predicted(opened)
    built, real = [], SubllmConfig.__post_init__
    monkeypatch.setattr(
        SubllmConfig, "__post_init__", lambda config, **given: built.append(config) or real(config, **given)
    )
    structure(opened).set_value("T(T)" * 25).run()
    assert not opened.exception and 0 < len(built) < 100, "of the papers' models and of this one"


def test_a_structure_that_is_too_long_is_refused_before_it_is_read(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    code = script("efficiency").removesuffix("show()\n")
    page = AppTest.from_string(f"{code}from app.messages import boundary\nwith boundary():\n    show()\n")
    page.session_state["checkpoint"] = "tiny"
    page.run(timeout=120)
    predicted(page)
    monkeypatch.setattr(predicted_view, "changed", lambda *_: pytest.fail("it was read"))
    structure(page).set_value("T(T)" * 1000).run()
    assert not page.exception
    (error,) = page.error
    assert "The structure has 4,000 characters; a prediction takes at most 500" in error.value.replace("\\", "")


def test_a_structure_without_levels_saves_nothing(opened):
    predicted(opened)
    structure(opened).set_value("TT").run()
    assert [info.value for info in opened.info] == [table("en")["predicted_no_levels"]]
    assert not opened.exception and not [each for each in opened.caption if "at any length" in each.value]


def test_a_hub_model_is_fetched_for_a_prediction_when_a_person_asks_for_it(opened, tiny_checkpoint, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        "app.settings.fetch_checkpoint", lambda name: fetched.append(name) or tiny_checkpoint
    )  # tests do not reach the hub
    monkeypatch.setattr("app.settings._fetched", {})
    monkeypatch.setenv("SUBLLM_HUB_MODELS", "someone/model")
    opened.run()
    opened.selectbox(key="checkpoint").set_value("someone/model").run()
    predicted(opened).run()
    assert not fetched and not opened.table
    assert "not on this machine yet" in opened.info[0].value
    next(button for button in opened.button if button.label == "Download the checkpoint").click().run()
    assert fetched == ["someone/model"] and not opened.exception
    assert len(opened.table) == 6
    opened.run()
    assert fetched == ["someone/model"]


def test_a_checkpoint_that_changed_begins_a_sweep_of_its_own(opened, tiny_checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    monkeypatch.setattr("app.views.efficiency.measured.LENGTHS", (16, 64))
    opened.run()
    opened.multiselect(key="lengths").set_value([16]).run()
    opened.slider(key="repeats").set_value(1).run()
    measure(opened)
    before = measured(opened)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"retention_ratio": 0.25}))
    opened.run()
    assert measured(opened) is before, "what is shown is what was measured"
    opened.multiselect(key="lengths").set_value([64]).run()
    measure(opened)
    assert measured(opened).facts["checkpoint"] != before.facts["checkpoint"]
    assert [row.tokens for row in measured(opened).sorted()] == [64]


def test_memory_of_the_process_that_is_not_known_is_a_dash():
    _, (row, *_) = from_parquet((ASSETS / "benchmarks" / "cpu-float32.parquet").read_bytes())
    rows = [replace(row, resident_bytes=sizes) for sizes in ([6, 4], [0, 4], [6, 0], [])]
    assert [*measured_view._table(rows)[table("en")["measured_resident"]]] == ["1.50×", "–", "–", "–"]
    assert table("en")["measured_resident"] not in measured_view._table(rows[1:])


def test_a_model_too_small_for_the_hardware_is_said_with_its_way_out(opened):
    predicted(opened)
    (said,) = [info.value.replace("\\", "") for info in opened.info]
    assert re.search(r"Prefill is launch-bound: launching its kernels takes [\d.]+ ms, running them [\d.]+ ms", said)
    assert "The savings would show from about" in said or "The savings would not show at any length" in said
    assert "--graphs" not in opened.code[0].value
    before = opened.table[0].value.loc["Decode, one token per sequence, ms", "SUBLLM"]
    opened.toggle(key="graphs").set_value(True).run()
    assert "--graphs" in opened.code[0].value
    assert float(opened.table[0].value.loc["Decode, one token per sequence, ms", "SUBLLM"]) < float(before)


def test_errors_of_predictions_have_one_number_of_digits(opened, monkeypatch):
    monkeypatch.setattr("app.engine.calibrate", lambda *_: predicted_view._listed()[0])
    opened.slider(key="repeats").set_value(1).run()
    measure(opened)
    next(button for button in opened.button if button.label == table("en")["check"]).click().run()
    assert not opened.exception and not opened.error
    cells = opened.table[-1].value[[table("en")["check_error"], table("en")["check_peak_error"]]].iloc[0]
    assert all(re.fullmatch(r"[+-][\d,]+\.\d%", cell) for cell in cells)
    assert any("uses the rates measured on this machine" in caption.value for caption in opened.caption)


def test_hardware_of_one_s_own_is_added_and_chosen(opened):
    predicted(opened)
    words = table("en")
    for field, value in (("own_name", "my card"), ("own_source", "its data sheet")):
        next(box for box in opened.text_input if box.label == words[field]).set_value(value)
    for box in opened.number_input:
        box.set_value(80.0)
    next(button for button in opened.button if button.label == words["own_add"]).click().run()
    assert not opened.exception and not opened.error
    assert opened.selectbox(key="hardware").value == "my card"
    assert "--hardware 'my card' --table hardware.json" in opened.code[0].value
