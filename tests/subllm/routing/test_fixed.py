"""Routers that do not learn keep the nominal share, causally and alike however a text is divided."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subllm.routing import ROUTERS, Lengths, LevelTokens
from tests.conftest import tiny_config


def tokens_of(batch, length, mask=None, past=0):
    positions = (past + torch.arange(length)).expand(batch, -1)
    return LevelTokens(torch.zeros(batch, length, 4), positions, mask, Lengths.even(past, batch))


def router_of(name, ratio, level=1):
    return ROUTERS[name](tiny_config("T(T(T)T)T", router=name, retention_ratio=ratio), level)


@given(st.integers(1, 60), st.sampled_from([0.07, 0.25, 0.5, 0.64, 1.0]))
def test_even_distances_keep_the_rounded_up_share_of_every_beginning(length, ratio):
    selection = router_of("even", ratio).select(tokens_of(2, length), training=False)
    expected = [math.ceil(round(ratio * n, 6)) for n in range(1, length + 1)]
    assert selection.kept.cumsum(1).tolist() == [expected] * 2
    gaps = selection.kept[0].nonzero().diff(dim=0)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert torch.equal(selection.weights, selection.kept.float())
    assert selection.scores is None and selection.threshold is None


def test_random_selection_keeps_about_its_share_and_differs_by_level():
    kept = [router_of("random", 0.64, level).select(tokens_of(1, 4000), training=False).kept for level in (1, 2)]
    assert [each.float().mean().item() for each in kept] == pytest.approx([0.64, 0.64], abs=0.03)
    both = (kept[0] & kept[1]).float().mean().item()
    assert both == pytest.approx(0.64**2, abs=0.03)  # independent


@pytest.mark.parametrize("name", ["even", "random"])
def test_inference_selects_alike_in_pieces(name):
    router = router_of(name, 0.64)
    whole = router.select(tokens_of(1, 40), training=False).kept
    pieces = [router.select(tokens_of(1, 8, past=start), training=False).kept for start in range(0, 40, 8)]
    assert torch.equal(torch.cat(pieces, 1), whole)


def test_random_training_draws_the_rounded_up_share_of_each_row_anew():
    mask = torch.arange(50) < torch.tensor([[50], [30]])
    router = router_of("random", 0.64)
    first, second = (router.select(tokens_of(2, 50, mask), training=True).kept for _ in range(2))
    assert first.sum(1).tolist() == second.sum(1).tolist() == [32, 20]
    assert not (first & ~mask).any() and not torch.equal(first, second)
