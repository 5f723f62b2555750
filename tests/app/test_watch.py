"""The page that shows training runs, run by Streamlit's own test runner on a run's files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.training.run import load_snapshots, read_run, routing_history
from app.files import configuration, recorded, training_run
from app.settings import SHIPPED_RUN, Settings
from app.state import Session
from subllm import CheckpointError
from subllm.assets import ASSETS
from subllm.runs.routing_snapshot import RoutingSnapshot
from tests.analysis.training.test_run import PROMPTS, write_run
from tests.app.scripts import script

SCRIPT = script("watch")


@pytest.fixture
def page(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "runs" / "mixed", router=["even", "subllm"])
    about = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    (tmp_path / "runs" / "dense").mkdir()
    (tmp_path / "runs" / "dense" / "run.json").write_text(
        json.dumps(about | {"retention_ratios": [], "structure": "TTT"})
    )
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path / "runs"))
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception
    return app.selectbox(key="watched").set_value("one").run()


def test_a_run_that_goes_on_is_shown(page):
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Step"] == "20 / 100" and shown["Loss"] == "3.000" and shown["Held-out loss"] == "4.000"
    assert next(box for box in page.selectbox if box.label == "Prompt").options == [
        f"{number} · {prompt}" for number, prompt in enumerate(PROMPTS, 1)
    ]
    assert page.select_slider(key="watch step").value == 20
    assert not page.exception and not page.error


def test_damaged_lines_of_a_log_are_counted_and_the_rest_is_shown(page, tmp_path):
    with (tmp_path / "runs" / "one" / "log.jsonl").open("a") as file:
        file.write('\n{"step": null}\n')
    page.run()
    assert not page.exception and not page.error
    assert page.warning[0].value.startswith("2 damaged lines of the log are left out")
    assert {metric.label: metric.value for metric in page.metric}["Loss"] == "3.000"


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
    monkeypatch.setattr("app.settings._ROUTERS", {})
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    monkeypatch.setattr("app.settings._SHIPPED", tmp_path)
    page = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not page.exception
    assert "subllm train" in page.code[0].value


def test_the_losses_of_a_training_and_of_a_conversion_are_told_apart(page, tmp_path):
    def captions():
        return [each.value for each in page.caption if "running mean" in each.value]

    (training,) = captions()
    assert training.startswith("Nats per token.")
    about = json.loads((tmp_path / "runs" / "one" / "run.json").read_text())
    about["config"] |= {"converted": True, "hidden_weight": 2.0}
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "con_verted")
    (tmp_path / "runs" / "con_verted" / "run.json").write_text(json.dumps(about))
    page.run()
    page.multiselect(key="watched beside one").set_value(["con_verted"]).run()
    assert not page.exception and not page.error
    converted = "The line is the training loss as a running mean: the divergence from"
    assert captions()[0] == f"one: {training}"
    assert captions()[1].startswith(f"con\\_verted: {converted} the dense model, in nats per token, plus")
    page.selectbox(key="watched").set_value("con_verted").run()
    assert [each.startswith(converted) for each in captions()] == [True]


def test_a_run_without_routing_is_said(page):
    page.selectbox(key="watched").set_value("dense").run()
    assert not page.exception
    assert "has recorded no routing" in page.info[-1].value


def test_a_level_whose_router_does_not_score_says_so_in_place_of_its_scores(page):
    page.selectbox(key="watched").set_value("mixed").run()
    assert not page.exception
    said = "Level 1 has no scores and no threshold: its router, “evenly spaced tokens”, does not score tokens."
    assert [info.value.replace("\\", "") for info in page.info] == [said, said], "of the steps, and side by side"
    page.selectbox(key="watch level").set_value(2).run()
    page.selectbox(key="beside level").set_value(2).run()
    assert not page.info and not page.exception


def test_a_look_at_a_training_leaves_what_other_pages_show_as_it_is(page):
    own: Session = page.session_state["session"]
    own.shown = {"level": 7, "selected": 99, "until": 99, "colour": "divergence"}  # this run has nothing of the kind
    page.run()
    assert not page.exception
    assert own.shown == {"level": 7, "selected": 99, "until": 99, "colour": "divergence"}


def test_every_run_that_ships_is_shown_with_its_snapshots(page):
    shipped = {name: folder for name, folder in Settings.read().runs().items() if folder.is_relative_to(ASSETS)}
    assert len(shipped) > 10
    for name, folder in shipped.items():
        page.selectbox(key="watched").set_value(name).run()
        assert not page.exception and not page.error, name
        run = read_run(folder)
        assert len(load_snapshots(run)) == len(run.snapshots), name


@pytest.mark.parametrize("name", ["one", SHIPPED_RUN])
def test_a_rerun_that_changed_nothing_opens_no_file(page, opened_files, name):
    page.selectbox(key="watched").set_value(name).run()
    opened_files.clear()
    page.run()
    page.select_slider(key="watch step").set_value(0).run()
    page.selectbox(key="watch level").set_value(2).run()
    assert not page.exception and not page.error
    assert [path for path in opened_files if path.suffix in (".json", ".jsonl", ".npz")] == []


def test_what_a_run_has_written_since_is_seen_and_nothing_else_is_read_again(page, tmp_path, opened_files):
    folder = tmp_path / "runs" / "one"
    with (folder / "log.jsonl").open("a") as file:
        file.write('ss": 1.0}\n{"step": 22, "loss": 2.5}\n')
    opened_files.clear()
    page.run()
    assert {metric.label: metric.value for metric in page.metric}["Loss"] == "2.500"
    assert not [path for path in opened_files if path.suffix == ".npz"]
    snapshot = RoutingSnapshot.load(sorted((folder / "snapshots").iterdir())[-1])
    replace(snapshot, step=30).save(folder / "snapshots")
    page.run()
    assert page.select_slider(key="watch step").options == ["0", "10", "20", "30"]
    assert page.select_slider(key="watch step").value == 30, "it stood at the newest step"
    page.select_slider(key="watch step").set_value(10).run()
    replace(snapshot, step=40).save(folder / "snapshots")
    page.run()
    assert page.select_slider(key="watch step").options[-1] == "40"
    assert page.select_slider(key="watch step").value == 10
    assert not page.exception and not page.error


def test_cached_runs_are_those_of_their_files(tmp_path):
    write_run(tmp_path)
    found = recorded(tmp_path)
    run = read_run(tmp_path)
    expected = routing_history(run, found.snapshots)
    assert training_run(tmp_path).snapshots == run.snapshots
    np.testing.assert_array_equal(found.history.retention, expected.retention)
    assert recorded(tmp_path) is found and training_run(tmp_path) is training_run(tmp_path)


def test_a_configuration_is_read_again_when_it_is_another(tmp_path, tiny_checkpoint):
    fields = json.loads((tiny_checkpoint / "config.json").read_text())
    with pytest.raises(CheckpointError, match="has no config"):
        configuration(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    first = configuration(tmp_path)
    assert configuration(tmp_path) is first
    (tmp_path / "config.json").write_text(json.dumps(fields | {"retention_ratio": 0.25}))
    assert configuration(tmp_path).retention_ratios == [0.25, 0.25]
