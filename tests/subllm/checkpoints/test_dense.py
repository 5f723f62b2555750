"""The dense model to compare with: the twin where there is one, else the same weights with nothing dropped."""

import pytest
import torch
from transformers import LlamaForCausalLM

from subllm import CheckpointError
from subllm.checkpoints.dense import load_dense, routing_off
from subllm.checkpoints.files import DENSE_TWIN
from subllm.checkpoints.load import load_checkpoint


def load(folder):
    return load_checkpoint(folder, "cpu", "float32")


def test_routing_off_is_the_llama_of_the_same_weights(tiny_checkpoint):
    model = load(tiny_checkpoint).model
    dense = routing_off(model)
    assert dense.model.layers[2].mlp.up_proj.weight is not None
    assert dense.model.layers[2].mlp.up_proj.weight.data_ptr() == model.model.layers[2].mlp.up_proj.weight.data_ptr()
    own = ("structure", "retention_ratio", "positions", "model_type")
    fields = {key: value for key, value in model.config.to_dict().items() if key not in own}
    fresh = LlamaForCausalLM(type(dense.config)(**fields)).eval()
    fresh.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in fresh.state_dict()})
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(dense(ids).logits, fresh(ids).logits)


def test_the_dense_twin_is_preferred_where_it_is(copied_checkpoint):
    checkpoint = load(copied_checkpoint)
    assert not load_dense(checkpoint).is_twin
    twin = routing_off(checkpoint.model)
    with torch.no_grad():
        twin.model.norm.weight.mul_(2)
    twin.save_pretrained(copied_checkpoint / DENSE_TWIN)
    dense = load_dense(load(copied_checkpoint))
    assert dense.is_twin
    assert dense.description == "twin"
    assert dense.model.config._attn_implementation == checkpoint.model.config._attn_implementation
    with torch.no_grad():
        torch.testing.assert_close(dense.model.model.norm.weight, twin.model.norm.weight)


def test_a_twin_with_another_vocabulary_is_refused(copied_checkpoint):
    checkpoint = load(copied_checkpoint)
    twin = routing_off(checkpoint.model)
    words = twin.config.vocab_size
    twin.resize_token_embeddings(words + 8)
    twin.save_pretrained(copied_checkpoint / DENSE_TWIN)
    with pytest.raises(CheckpointError, match=f"embeddings for {words + 8} tokens, and the checkpoint for {words}"):
        load_dense(checkpoint)
