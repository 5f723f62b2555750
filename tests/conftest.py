"""Shared by all tests: tiny random models, and the golden cases of the reference."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subllm import SubllmConfig, SubllmForCausalLM

GOLDEN = Path(__file__).parent / "golden"


def tiny_config(structure: str, **fields) -> SubllmConfig:
    """A small configuration with grouped-query attention."""
    defaults = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return SubllmConfig(structure=structure, **(defaults | fields))


def tiny_model(structure: str, seed: int = 0, **fields) -> SubllmForCausalLM:
    """A small model with random weights, in evaluation mode; its scorers keep about half of the tokens."""
    torch.manual_seed(seed)
    model = SubllmForCausalLM(tiny_config(structure, **fields)).eval()
    for parameter in [b.scale for b in model.model.bypasses]:
        torch.nn.init.uniform_(parameter, 0.3, 1.0)
    return model


@pytest.fixture(params=["dense", "one_level", "nested", "paper_24_layers"])
def golden(request):
    """One case: its description, and its tensors."""
    case = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return case, load_file(GOLDEN / f"{request.param}.safetensors")
