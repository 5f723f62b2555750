"""A training's configuration is whole and without contradictions, or refused with what is wrong."""

import pytest

from subllm import TrainingError
from subllm.train.__main__ import main
from subllm.train.config import TrainConfig
from tests.conftest import run_command

SMALL = {"model": {"structure": "T(T)T"}, "steps": 8, "batch_size": 4, "micro_batch_size": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 5}, "must divide"),
        ({"precision": "int8"}, "float32, bf16"),
        ({"ablation": "sideways"}, "no-bypass, stride, random"),
        ({"ablation": "stride", "dense": True}, "of a dense model"),
        ({"stepps": 3}, "unknown fields stepps"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, said):
    with pytest.raises(TrainingError, match=said):
        TrainConfig.of(SMALL, **changes)


def test_one_field_of_the_model_is_changed_by_its_name():
    config = TrainConfig.of(SMALL, **{"model.router": "mod", "model.structure": "T(T)T(T)", "steps": 4})
    assert config.model == {"structure": "T(T)T(T)", "router": "mod"}
    assert config.steps == 4
    assert SMALL["model"] == {"structure": "T(T)T"}


def test_settings_of_several_options_all_count(tmp_path):
    asked = ["--set", "steps=0", "--set", "model.router=mod"]
    (tmp_path / "c.json").write_text('{"model": {"structure": "T(T)"}}')
    said = run_command(main, "--config", tmp_path / "c.json", "--data", tmp_path, "--out", tmp_path / "run", *asked)
    assert said.returncode and "steps is 0" in said.stderr
