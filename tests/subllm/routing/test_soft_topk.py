"""The closed form of the soft top-k against the iteration of an independent implementation (golden `colt5_modules`)."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from subllm.routing.soft_topk import soft_weights, water_level
from tests.conftest import GOLDEN

CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


@pytest.fixture
def modules():
    return load_file(GOLDEN / "colt5_modules.safetensors")


def weights_of(scores, k, mask=None):
    k = torch.full((len(scores),), k, dtype=scores.dtype)
    weights = soft_weights(scores, water_level(scores, k, 1.0, mask)[:, None], 1.0)
    return weights if mask is None else weights * mask


@pytest.mark.parametrize(("name", "k", "padded"), [
    ("paper_train", 45 / 8, False), ("paper_k", 5.0, False), ("exact", 45 / 8, False),
    ("paper_train_masked", 45 / 8, True),
])  # fmt: skip
def test_weights_are_those_of_fifty_iterations(modules, name, k, padded):
    mask = modules["soft_topk.mask"] if padded else None
    CLOSE(weights_of(modules["soft_topk.s"], k, mask), modules[f"soft_topk.{name}.scores"])


def test_the_level_is_that_of_the_fixed_point(modules):
    CLOSE(water_level(modules["soft_topk.s"], torch.full((2,), 45 / 8), 1.0), modules["soft_topk.exact.level"])


@settings(max_examples=50)
@given(st.integers(1, 30), st.floats(0.1, 40), st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 1000))
def test_weights_are_at_most_one_and_their_sum_is_k(length, k, spread, seed):
    scores = spread * torch.randn(2, length, generator=torch.Generator().manual_seed(seed))
    weights = weights_of(scores, k)
    assert (weights <= 1).all()
    torch.testing.assert_close(weights.sum(1), torch.full((2,), float(min(k, length))), atol=1e-3, rtol=1e-4)


def test_gradients_flow_through_the_level(modules):
    scores = modules["soft_topk.s"][:, :12].double().requires_grad_()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    assert torch.autograd.gradcheck(lambda s: weights_of(s, 2.5, mask), scores)
