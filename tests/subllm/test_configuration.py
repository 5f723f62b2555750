import pytest
from transformers import LlamaConfig

from subllm import ConfigurationError, SubllmConfig, SubllmError
from tests.conftest import tiny_config


def test_round_trip_keeps_what_makes_a_subllm(tmp_path):
    fields = {"retention_ratio": [0.7, 0.5], "positions": "parent", "router": ["even", "subllm"]}
    tiny_config("T(T(T)T)T", **fields).save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path)
    assert (loaded.routers, loaded.balancer_steps, loaded.bypass_steps) == (["even", "subllm"], 8000, 20000)
    assert (loaded.structure, loaded.retention_ratios, loaded.positions) == ("T(T(T)T)T", [0.7, 0.5], "parent")
    assert loaded.num_hidden_layers == 5


def test_round_trip_keeps_what_makes_a_mixture_of_depths(tmp_path):
    fields = {"router": ["mod", "subllm"], "predictor": True, "router_weight": "unit", "router_loss": 0.02}
    tiny_config("T(T(T)T)T", **fields).save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields


def test_fields_given_at_loading_replace_those_of_the_checkpoint_and_are_checked(tmp_path):
    tiny_config("T(TT)T").save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path, structure="TC(T)T", retention_ratio=0.3, router="even")
    assert (loaded.routers, loaded.retention_ratios[3], loaded.light_heads) == (["colt5"] * 3 + ["even"], 0.3, 2)
    assert SubllmConfig.from_pretrained(tmp_path, structure="T(T)T", num_hidden_layers=3).num_hidden_layers == 3
    for fields, message in [
        ({"router": "nonsense"}, "no router 'nonsense'"),
        ({"retention_ratio": 5.0}, "5.0"),
        ({"num_hidden_layers": 3}, "number of blocks in the structure 'T.TT.T' is 4, but num_hidden_layers is 3"),
        ({"structure": "T(T)T"}, "number of blocks in the structure 'T.T.T' is 3, but num_hidden_layers is 4"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            SubllmConfig.from_pretrained(tmp_path, **fields)


def test_a_structure_makes_a_subllm_of_a_llamas_configuration_whose_training_begins(tmp_path):
    LlamaConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path, structure="T(T)T")
    assert (loaded.structure, loaded.balancer_steps, loaded.bypass_steps) == ("T(T)T", 8000, 20000)


def test_round_trip_keeps_what_makes_light_and_heavy_blocks(tmp_path):
    fields = {"light_heads": 2, "light_intermediate_size": 20, "window": 9, "epsilon": 0.5}
    tiny_config("C(T)C", **fields, routed={"mlp": 0.5}, retention_ratio=[0.6]).save_pretrained(tmp_path)
    loaded = SubllmConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert loaded.retention_ratios == [0.125, 0.25, 0.5, 0.6, 0.125, 0.25, 0.5]
    assert loaded.routers == ["colt5"] * 3 + ["subllm"] + ["colt5"] * 3


def test_a_quarter_of_the_heads_and_a_ninth_of_the_units_are_light_by_default():
    config = tiny_config("C", num_attention_heads=16, num_key_value_heads=8, hidden_size=64, intermediate_size=90)
    assert (config.light_heads, config.light_intermediate_size, config.window) == (4, 10, 128)
    assert tiny_config("T(T)T").light_heads is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"light_heads": 3}, "light_heads is 3; it must be a multiple of 2, .* from 2 to 2"),
        ({"light_heads": 4}, "light_heads is 4; .* so that the heavy branch has heads"),
        ({"light_heads": 0}, "light_heads is 0"),
        ({"num_key_value_heads": 1}, "the number of key/value heads is 1 and that of hidden units 48"),
        ({"light_intermediate_size": 48}, "light_intermediate_size is 48; it must be from 1 to 47"),
        ({"window": 0}, "window is 0; it must be 1 token or more"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be a number above 0"),
        ({"routed": {"query": 0.0}}, r"The share of 'query' in routed is 0.0; it must lie in \(0, 1\]"),
        ({"routed": {"heads": 0.5}}, "routed has a share for 'heads'; allowed are query, key_value, mlp"),
        ({"router": "colt5"}, "no router 'colt5'"),
        ({"structure": "TT", "window": 9}, "window is 9, which is of blocks 'C' only, but the structure 'TT' has none"),
        ({"structure": "TT", "routed": {"mlp": 0.5}}, "routed is {'mlp': 0.5}, which is of blocks 'C' only"),
    ],
)
def test_contradictions_of_light_and_heavy_blocks_are_named(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        tiny_config(**({"structure": "CT"} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 4}, "is 3, but num_hidden_layers is 4"),
        ({"retention_ratio": 0.0}, r"must lie in \(0, 1\]"),
        ({"retention_ratio": 1.5}, "1.5"),
        ({"retention_ratio": [0.5, 0.5]}, r"values in retention_ratio is 2, but the number of '\(' .* is 1"),
        ({"positions": "absolute"}, "'absolute'"),
        ({"router": "dice"}, "no router 'dice'; routers are even, mod, random, stride, subllm"),
        ({"router": ["subllm", "even"]}, r"names in router is 2, but the number of '\(' .* is 1"),
        ({"bypass_minimum": [0.9]}, "two numbers"),
        ({"balancer_steps": -1}, "0 or more"),
        ({"predictor": True}, "predictor is True, which is of the router 'mod' only, but the routers are subllm"),
        ({"router_weight": "unit"}, "router_weight is 'unit', which is of the router 'mod' only"),
        ({"router": "mod", "router_weight": "one"}, "router_weight is 'one'; allowed are score, unit"),
        ({"router": "mod", "router_loss": -0.1}, "router_loss is -0.1; it must be a number from 0 on"),
        ({"router": "mod", "router_loss": float("inf")}, "router_loss is inf"),
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
    assert (loaded.predictor, loaded.router_weight, loaded.router_loss) == (False, "score", 0.01)
