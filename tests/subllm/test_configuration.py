import pytest

from subllm import ConfigurationError, SubllmConfig, SubllmError
from tests.conftest import tiny_config


def test_round_trip_keeps_what_makes_a_subllm(tmp_path):
    tiny_config("T(T(T)T)T", retention_ratio=[0.7, 0.5], positions="parent").save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path)
    assert (loaded.structure, loaded.retention_ratios, loaded.positions) == ("T(T(T)T)T", [0.7, 0.5], "parent")
    assert loaded.num_hidden_layers == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 4}, "has 3 blocks but num_hidden_layers is 4"),
        ({"retention_ratio": 0.0}, r"must lie in \(0, 1\]"),
        ({"retention_ratio": 1.5}, "1.5"),
        ({"retention_ratio": [0.5, 0.5]}, "2 values .* 1 subsampling"),
        ({"positions": "absolute"}, "'absolute'"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(SubllmError, match=message):
        tiny_config("T(T)T", **fields)


def test_checkpoint_without_structure_is_refused():
    with pytest.raises(ConfigurationError, match="no 'structure'"):
        SubllmConfig.from_dict({"hidden_size": 32})
