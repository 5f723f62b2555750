import pytest

from subllm import ConfigurationError, SubllmConfig, SubllmError
from tests.conftest import tiny_config


def test_round_trip_keeps_what_makes_a_subllm(tmp_path):
    fields = {"retention_ratio": [0.7, 0.5], "positions": "parent", "router": ["even", "subllm"]}
    tiny_config("T(T(T)T)T", **fields).save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path)
    assert (loaded.routers, loaded.balancer_steps, loaded.bypass_steps) == (["even", "subllm"], 8000, 20000)
    assert (loaded.structure, loaded.retention_ratios, loaded.positions) == ("T(T(T)T)T", [0.7, 0.5], "parent")
    assert loaded.num_hidden_layers == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 4}, "is 3, but num_hidden_layers is 4"),
        ({"retention_ratio": 0.0}, r"must lie in \(0, 1\]"),
        ({"retention_ratio": 1.5}, "1.5"),
        ({"retention_ratio": [0.5, 0.5]}, "values in retention_ratio is 2, but the number of levels .* is 1"),
        ({"positions": "absolute"}, "'absolute'"),
        ({"router": "dice"}, "no router 'dice'; routers are even, random, subllm"),
        ({"router": ["subllm", "even"]}, "names in router is 2, but the number of levels .* is 1"),
        ({"bypass_minimum": [0.9]}, "two numbers"),
        ({"balancer_steps": -1}, "0 or more"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(SubllmError, match=message):
        tiny_config("T(T)T", **fields)


def test_checkpoint_without_structure_is_refused():
    with pytest.raises(ConfigurationError, match="no 'structure'"):
        SubllmConfig.from_dict({"hidden_size": 32})


def test_checkpoints_older_than_the_schedules_are_at_their_end():
    loaded = SubllmConfig.from_dict({"structure": "T(T)T", "retention_ratio": 0.6})
    assert (loaded.balancer_steps, loaded.bypass_steps, loaded.routers) == (0, 0, ["subllm"])
