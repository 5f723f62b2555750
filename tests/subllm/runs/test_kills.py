"""Killed at any moment, a job goes on when its command is given again, and ends as one that was left alone."""

import random

import pytest
import torch
from safetensors.torch import load_file

from analysis.cost.sweep import from_parquet
from subllm.runs.checkpoints import checkpoints, damage
from subllm.runs.folder import read_log
from tests.conftest import run_command
from tests.subllm.convert.conftest import convert, tiny_llama  # noqa: F401 - a fixture
from tests.subllm.runs.jobs import SMALL, conversion, efficiency, started, sweep, training
from tests.subllm.runs.test_checkpoints import equal_to

AIMS = ("partial/*/model.safetensors", "partial/*/optimizer.pt", "partial/*/trainer_state.json",
        "partial/*/manifest.json", ".*.partial", "snapshots/.*.partial", "checkpoint-*", "log.jsonl")  # fmt: skip


def killed_when(process, seen, tries=400_000):
    """Kill a process once something is seen; False if it ends before."""
    for _ in range(tries):
        if seen() or not process.is_alive():
            break
        process.join(0.0005)
    was_alive = process.is_alive()
    process.kill()
    process.join()
    return was_alive


def after(seconds, process):
    """Something that is seen after a time."""
    return lambda: process.join(seconds) is None


def moment(number, process, folder):
    """By turns a moment that a file shows, and a random one."""
    if number % 3 == 2:
        return after(random.Random(number).uniform(0.05, 2.0), process)
    aim = AIMS[number % len(AIMS)]
    before = {*folder.glob(aim)}
    size = (folder / "log.jsonl").stat().st_size if (folder / "log.jsonl").exists() else 0
    if aim == "log.jsonl":
        return lambda: (folder / aim).exists() and (folder / aim).stat().st_size > size
    return lambda: {*folder.glob(aim)} - before


def kill_trainings(data, finished, tmp_path, kills):
    done = number = 0
    while done < kills:
        number += 1
        assert number < 3 * kills, "jobs end before they are killed"
        out = tmp_path / f"run-{number}"
        first = True
        while done < kills and not (out / "final").exists():
            process = started(training, SMALL, data, out)
            out.mkdir(exist_ok=True)
            if not killed_when(process, moment(done + number, process, out)):
                assert process.exitcode == 0
                break
            done, first = done + 1, False
            assert all(damage(checkpoint) is None for checkpoint in checkpoints(out)), "complete, or not there"
            if (out / "log.jsonl").exists():
                list(read_log(out / "log.jsonl", lambda *line: pytest.fail(f"line {line} of the log is damaged")))
        if not first:
            process = started(training, SMALL, data, out)
            process.join()
            assert process.exitcode == 0
            equal_to(finished, out)
            assert not list(out.rglob("*partial*"))


@pytest.mark.slow
def test_killed_trainings_end_as_one_that_was_left_alone(data, finished, tmp_path):
    kill_trainings(data, finished, tmp_path, 3)


@pytest.mark.soak
def test_many_killed_trainings_end_as_one_that_was_left_alone(data, finished, tmp_path):
    kill_trainings(data, finished, tmp_path, 30)


@pytest.mark.soak
def test_killed_conversions_end_as_one_that_was_left_alone(tiny_llama):  # noqa: F811
    arguments = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl",
        "--length", 24, "--held-out-blocks", 2, "--precision", "float32", "--steps", 60,
    ]  # fmt: skip
    assert convert(*arguments, "--out", tiny_llama / "whole").returncode == 0
    expected = load_file(tiny_llama / "whole" / "learned" / "routing.safetensors")
    done = number = resumed = 0
    while done < 12:
        number += 1
        out = tiny_llama / f"out-{number}"
        while done < 12 and not (out / "README.md").exists():
            process = started(conversion, *map(str, [*arguments, "--out", out]))
            resumed += bool(list((out / "training").glob("checkpoint-*")))
            later = after(random.Random(done).uniform(1, 6), process)
            seen = moment(done, process, out / "training") if done % 2 else later
            if not killed_when(process, seen):
                break
            done += 1
        process = started(conversion, *map(str, [*arguments, "--out", out]))
        process.join()
        assert process.exitcode == 0
        for name, tensor in load_file(out / "learned" / "routing.safetensors").items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)
        assert not list(out.rglob("*partial*"))
    assert resumed


@pytest.mark.soak
def test_killed_sweeps_leave_whole_files_and_keep_what_was_measured(tiny_checkpoint, tmp_path):
    arguments = [
        "--checkpoint", tiny_checkpoint, "--repeats", 1, "--device", "cpu", "--out", tmp_path, "--resume",
        "--lengths", *range(16, 32), "--batches", 1, 2,
    ]  # fmt: skip
    file, page = tmp_path / "cpu-float32.parquet", tmp_path / "cpu-float32.md"
    known = {}
    for number in range(12):
        process = started(sweep, *map(str, arguments))
        size = file.stat().st_mtime_ns if file.exists() else 0
        if not number % 2:
            seen = after(random.Random(number).uniform(0.5, 4), process)
        else:
            seen = lambda size=size: file.exists() and file.stat().st_mtime_ns > size  # noqa: E731
        killed_when(process, seen)
        if file.exists():
            rows = {row.setting: row for row in from_parquet(file.read_bytes())[1]}
            assert known.items() <= rows.items(), "what was measured is kept, to the last digit"
            assert page.read_text().startswith("# SUBLLM")
            known = rows
    assert known
    assert run_command(efficiency.main, *arguments).returncode == 0
    rows = {row.setting: row for row in from_parquet(file.read_bytes())[1]}
    assert len(rows) == 32 and known.items() <= rows.items()
