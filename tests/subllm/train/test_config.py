"""A training's configuration is whole and without contradictions, or refused with what is wrong."""

import pytest

from subllm import ConfigurationError, TrainingError
from subllm.train.__main__ import main
from subllm.train.config import TrainConfig
from subllm.train.loop import build_model
from tests.conftest import byte_tokenizer, run_command

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
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"clip": "x"}, "clip is 'x'; it must be a number"),
        ({"seed": -1}, "seed is -1; it must not be less than 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"prompts": "a text"}, "prompts is 'a text'; it must be a list"),
        ({"model": 3}, "model is 3; it must name at least the structure"),
        ({"model": {"hidden_size": 32}, "dense": True}, "must name at least the structure"),
        ({"length": 1}, "length is 1; it must be 2 or more"),
        ({"prompts": ["a", ""]}, "prompts has an empty text"),
        ({"model.bypass_steps": 100}, "model has bypass_steps, which the training determines"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, said):
    with pytest.raises(TrainingError, match=said):
        TrainConfig.of(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model.retention": 0.5}, ConfigurationError, "unknown fields retention; allowed are .*, retention_ratio,"),
        ({"model.hidden_size": "large"}, ConfigurationError, "'hidden_size' expected int, got str"),
        ({"model.hidden_size": 30}, ConfigurationError, r"hidden size \(30\) is not a multiple"),
        ({"model.hidden_size": 30, "dense": True}, ConfigurationError, r"hidden size \(30\) is not a multiple"),
        ({"model.num_attention_heads": 0}, ConfigurationError, "num_attention_heads is 0; it must be 1 or more"),
        ({"model.num_key_value_heads": 3}, ConfigurationError, "key/value heads 3; the second must divide the first"),
        ({"model.attn_implementation": "magic"}, ConfigurationError, "magic"),
        ({"model.attn_implementation": "magic", "dense": True}, ConfigurationError, "magic"),
        ({"model.hidden_act": "magic"}, ConfigurationError, "there is no 'magic'"),
        ({"model.vocab_size": "many"}, TrainingError, "vocab_size of the model is 'many', and that of the tokenizer"),
        ({"model.pad_token_id": 900}, TrainingError, "pad_token_id of the model is 900, and that of the tokenizer"),
        ({"model.max_position_embeddings": 8}, TrainingError, "and the model has 8 positions"),
        ({"model.head_dim": 3}, ConfigurationError, "The size of a head is 3; it must be even"),
        ({"model.attention_dropout": 1.0}, ConfigurationError, r"attention_dropout is 1.0; it must lie in \[0, 1\)"),
        ({"model.dtype": "float32"}, ConfigurationError, "unknown fields dtype; allowed are"),
        ({"model.return_dict": False}, ConfigurationError, "unknown fields return_dict; allowed are"),
        ({"ablation": "stride", "model.structure": "TCT"}, TrainingError, "but the structure 'TCT' has no brackets"),
        ({"ablation": "random", "model.structure": "TT"}, TrainingError, "but the structure 'TT' has no brackets"),
    ],
)
def test_models_that_cannot_be_are_refused(changes, error, said):
    with pytest.raises(error, match=said):
        build_model(TrainConfig.of(SMALL, **changes), byte_tokenizer())


def test_a_llama_may_have_its_number_of_blocks_written_out():
    small = {"model.hidden_size": 32, "model.intermediate_size": 48, "model.num_attention_heads": 4}
    changes = {"model.num_hidden_layers": 3, "model.rope_theta": 500.0, "dense": True, **small}
    config = build_model(TrainConfig.of(SMALL, **changes), byte_tokenizer()).config
    assert (config.num_hidden_layers, config.rope_parameters["rope_theta"]) == (3, 500.0)


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
