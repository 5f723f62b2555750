"""One table of routers: measured on tiny prompts, resumed, and beside what the papers report."""

import json
import re
import shutil

import pytest

from analysis import AnalysisError
from analysis.commands.routers import main
from analysis.cost.routers import NAMES, load_table, random_model, save_table
from tests.conftest import run_command, tiny_model


def test_every_router_has_a_random_model_that_keeps_its_nominal_share():
    for router in NAMES:
        config = random_model(router, 64).config
        assert router in config.routers
        assert config.parsed_structure.num_blocks == 8


def test_rows_are_written_one_by_one_and_kept_by_the_next_run(tmp_path):
    command = ["--lengths", "32", "--repeats", "1", "--out", tmp_path]
    first = run_command(main, *command, "--routers", "colt5")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads((tmp_path / "routers-random.json").read_text())["rows"]
    assert row["structure"] == "CCCCCCCC" and row["operations"] < 1 and row["cache"] < 1
    assert "| CoLT5 |" in (tmp_path / "routers-random.md").read_text()
    again = run_command(main, *command, "--routers", "colt5")
    assert again.stderr == "" and "| CoLT5 |" in again.stdout, "nothing is measured twice"


def test_a_trained_run_is_named_after_its_router_and_has_its_loss_and_a_measured_training_step(
    tiny_checkpoint, tmp_path
):
    folder = tmp_path / "tiny-run"
    shutil.copytree(tiny_checkpoint, folder / "final")
    entries = [
        {"step": 2, "loss": 2.0, "tokens": 1_000_000},
        {"step": 2, "eval_loss": 5.5},
        {"step": 3, "eval_loss": 5.25},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    done = run_command(main, "--runs", folder, "--lengths", "32", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| SUBLLM (tiny-run) |")]
    assert "| 5.250 | 1.5 M |" in line and "training 1.26×" in line
    (names, _) = (line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| router", "| ---")))
    assert re.fullmatch(r"\d\.\d\d×", line.split(" | ")[names.index("training")])


def test_runs_of_one_name_are_told_apart_and_one_that_was_trained_anew_is_measured_anew(tiny_checkpoint, tmp_path):
    runs = [tmp_path / place / "small" for place in ("a", "b")]
    for run in runs:
        shutil.copytree(tiny_checkpoint, run / "final")
        (run / "log.jsonl").write_text("")
    command = ["--lengths", "32", "--repeats", "1", "--out", tmp_path]
    first = run_command(main, "--runs", *runs, *command)
    assert first.returncode == 0, first.stderr
    table = tmp_path / "routers-trained.json"
    rows = json.loads(table.read_text())["rows"]
    assert [row["name"] for row in rows] == [f"SUBLLM ({run})" for run in runs]
    assert run_command(main, "--runs", *runs, *command).stderr == "", "nothing is measured twice"
    tiny_model("TT(T(T)T)T", seed=1, max_position_embeddings=512, vocab_size=320).save_pretrained(runs[1] / "final")
    again = run_command(main, "--runs", *runs, *command)
    assert again.returncode == 0 and len(again.stderr.splitlines()) == 1, again.stderr
    found = json.loads(table.read_text())["rows"]
    assert found[0] == rows[0] and len(found) == 2 and found[1]["digest"] != rows[1]["digest"]


def test_a_table_of_another_machine_is_measured_anew_and_a_broken_one_refused(tmp_path):
    file = tmp_path / "table.json"
    save_table(file, {"device": "a"}, [])
    assert load_table(file, {"device": "b"}) == []
    file.write_text("[")
    with pytest.raises(AnalysisError, match="delete it to measure again"):
        load_table(file, {})
