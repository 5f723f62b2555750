"""Training steps of both models are run and counted."""

import json
import re

import pytest

from analysis import AnalysisError
from analysis.commands.training_step import main
from analysis.cost.training_step import compare_steps, facts_of
from subllm import ConfigurationError
from subllm.train.config import TrainConfig
from tests.conftest import run_command
from tests.subllm.train.test_loop import MODEL

CONFIG = TrainConfig(model=MODEL)


def test_steps_of_both_models_are_timed_and_their_operations_counted():
    (row, longer) = (compare_steps(CONFIG, length, 2, 3, "cpu") for length in (16, 64))
    assert len(row.took) == len(row.dense_took) == 3
    assert min(took.seconds for took in (*row.took, *row.dense_took)) > 0
    assert 1 < row.limit < longer.limit < 5 / (2 + 2 * 0.6**2 + 0.6**4)  # only quadratic work, and no head
    assert 0 < longer.peak_bytes[0] < longer.peak_bytes[1]


@pytest.mark.parametrize(("length", "batch", "repeats"), [(0, 1, 1), (129, 1, 1), (16, 0, 1), (16, 1, 0)])
def test_steps_that_cannot_be_measured_are_refused(length, batch, repeats):
    with pytest.raises(AnalysisError, match="the model has 128 positions"):
        compare_steps(CONFIG, length, batch, repeats, "cpu")


def test_a_step_of_more_tokens_than_there_are_is_refused():
    with pytest.raises(AnalysisError, match=r"A step of 1,000,000,000 tokens .* the text that is read has \d+,\d+"):
        compare_steps(CONFIG, 100, 10**7, 1, "cpu")


def test_a_model_that_cannot_be_is_refused_and_the_width_is_that_of_the_built_one():
    wrong = TrainConfig(model=MODEL | {"hidden_size": "x"})
    for refused in (lambda: compare_steps(wrong, 16, 1, 1, "cpu"), lambda: facts_of(wrong, 1, "cpu")):
        with pytest.raises(ConfigurationError, match="'hidden_size' expected int, got str"):
            refused()
    assert facts_of(CONFIG, 1, "cpu")["model"] == f"{MODEL['structure']}, width {MODEL['hidden_size']}"
    assert facts_of(TrainConfig(model={"structure": "T(T)T"}), 1, "cpu")["model"] == "T(T)T, width 4096"


def test_the_command_writes_a_table(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": MODEL}))
    command = ["--config", str(tmp_path / "config.json")]
    options = ["--lengths", "32", "--tokens", "64", "--repeats", "1", "--out", str(tmp_path)]
    done = run_command(main, *command, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| 32 \| 2 \| \d\.\d\d×", (tmp_path / "training-cpu-float32.md").read_text())
    wrong = run_command(main, *command, "--lengths", "4096")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and len(wrong.stderr.splitlines()) == 1
