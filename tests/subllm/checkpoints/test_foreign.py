"""Checkpoints of other projects with token routing are recognised, and what differs is said in both languages."""

import json

import pytest
import streamlit as st
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from app.strings import explain
from subllm import CheckpointError
from subllm.checkpoints.base import load_base
from subllm.checkpoints.load import load_checkpoint
from tests.conftest import byte_tokenizer


@pytest.fixture
def llama_factory(tmp_path):
    """A LLaMA whose odd blocks have a router, saved as LLaMA-Factory saves it."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    weights = LlamaForCausalLM(config).state_dict()
    renamed = {name.replace("layers.1.", "layers.1.block."): tensor for name, tensor in weights.items()}
    renamed["model.layers.1.router.weight_predictor.weight"] = torch.zeros(1, 16)
    renamed["model.layers.1.router.weight_predictor.bias"] = torch.zeros(1)
    save_file({name: tensor.clone() for name, tensor in renamed.items()}, tmp_path / "model.safetensors")
    write(tmp_path, **config.to_dict() | {"architectures": ["LlamaMoDForCausalLM"]})
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def write(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))


def refused(load, folder):
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return caught.value


def load_own(folder):
    return load_checkpoint(folder, "cpu", "float32")


def load_dense(folder):
    return load_base(str(folder))


@pytest.mark.parametrize(
    ("load", "architecture"),
    [(load_own, "LlamaMoDForCausalLM"), (load_dense, "LlamaMoDForCausalLM"), (load_dense, "LlamaForCausalLM")],
)
def test_a_mixture_of_depths_of_llama_factory_is_refused_with_what_differs(
    load, architecture, llama_factory, monkeypatch
):
    fields = json.loads((llama_factory / "config.json").read_text())
    write(llama_factory, **fields | {"architectures": [architecture]})
    error = refused(load, llama_factory)
    for part in ("LLaMA-Factory", "r·block(x)", "one token fewer", "12.5%", "subllm convert llama --router mod"):
        assert part in str(error)
    monkeypatch.setitem(st.session_state, "language", "zh")
    assert "取代词元 x" in explain(error) and "astramind 的" in explain(error)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"d_model": 1024, "hidden_dim": 4096, "capacity_factor": 0.12, "weight_tying": True, "num_layers": 16},
            "softmax over the tokens",
        ),
        ({"model_type": "pmod_llava_llama"}, "p-MoD"),
        ({"model_type": "mod_llava_llama"}, "γ-MoD"),
        ({"model_type": "llama", "architectures": ["MistralMoDForCausalLM"]}, "LLaMA-Factory"),
    ],
)
def test_other_formats_are_known_by_their_configuration(fields, part, tmp_path):
    write(tmp_path, **fields)
    assert part in str(refused(load_own, tmp_path))


@pytest.mark.parametrize("architectures", [None, "LlamaMoDForCausalLM", [3, None], {}])
def test_fields_of_another_type_are_no_format(architectures, tmp_path):
    write(tmp_path, model_type="llama", architectures=architectures)
    assert "not a 'subllm'" in str(refused(load_own, tmp_path))


def test_routers_of_an_unknown_rule_are_named(llama_factory):
    config = json.loads((llama_factory / "config.json").read_text())
    write(llama_factory, **config | {"architectures": ["LlamaForCausalLM"]})
    weights = {name: torch.zeros(1) for name in ("model.layers.0.router.weight", "model.layers.1.router.weight")}
    save_file(weights, llama_factory / "model.safetensors")
    error = refused(load_dense, llama_factory)
    assert "model.layers.0.router.weight, model.layers.1.router.weight; 2 tensors" in str(error)
