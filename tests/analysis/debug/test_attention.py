"""Attention of one token is what the eager kernel computes, in the prompt's own places."""

import numpy as np
import pytest
import torch

from analysis.debug.attention import attention_of
from subllm import SubllmCache
from tests.conftest import tiny_model

IDS = np.array([5, 9, 33, 7, 60, 12, 2, 81, 44, 20])


@pytest.mark.parametrize("token", [0, 6, 9])
@pytest.mark.parametrize("positions", ["original", "parent"])
def test_attention_equals_the_eager_kernels(token, positions):
    model = tiny_model("T(T(T)T)T", attn_implementation="eager", positions=positions)
    found = attention_of(model, IDS, token)
    with torch.inference_mode():
        output = model(torch.tensor(IDS)[None], output_attentions=True, output_routing=True,
                       past_key_values=SubllmCache(model.config))  # fmt: skip
    levels = [np.arange(10), *(record.kept[0].numpy().nonzero()[0] for record in output.routing)]
    for block, level in enumerate(model.config.parsed_structure.block_levels):
        places = levels[level]
        if token not in places:
            assert np.isnan(found[block]).all()
            continue
        expected = output.attentions[block][0, :, token].numpy()
        np.testing.assert_allclose(found[block], expected, atol=1e-5)
