"""A training's configuration is whole and without contradictions, or refused with what is wrong."""

import pytest

from subllm import TrainingError
from subllm.train.config import TrainConfig

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
