"""The block: piece by piece gives transformers' numbers."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from subllm import SubllmCache
from tests.conftest import tiny_model


@pytest.mark.parametrize("length", [3, 512, 513, 1025, 1500])
@pytest.mark.parametrize("batch", [1, 2])
def test_pieces_change_nothing(length, batch, monkeypatch):
    model = tiny_model("T(T)T", max_position_embeddings=2048)
    ids = torch.randint(1, 97, (batch, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model(ids, past_key_values=SubllmCache(model.config)).logits
        for layer in model.model.layers:
            monkeypatch.setattr(layer, "forward", LlamaDecoderLayer.forward.__get__(layer))
        theirs = model(ids, past_key_values=SubllmCache(model.config)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_whole_blocks():
    model = tiny_model("TT", max_position_embeddings=1024)
    ids = torch.randint(1, 97, (1, 700), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())
