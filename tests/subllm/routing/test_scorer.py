"""The selection rules and the training-time gradients, against cases worked out by hand."""

from statistics import NormalDist

import pytest
import torch

from subllm.routing import LevelTokens, Packing
from subllm.routing.balancer import balanced_weights, balancing_gradient
from subllm.routing.bypass import Bypass
from subllm.routing.scorer import Subsampler, select_top
from tests.conftest import tiny_config


def tokens_of(scores, mask=None):
    """Tokens with one channel, which is their score."""
    positions = torch.arange(scores.shape[1]).expand_as(scores)
    return LevelTokens(scores[..., None], positions, mask, [0] * len(scores))


def scorer(**fields):
    router = Subsampler(tiny_config("T(T)T", hidden_size=8, **fields), 1)
    router.weight.data = torch.ones(1)
    return router


@torch.no_grad()
def test_inference_keeps_positive_scores_with_clamped_weights():
    scores = torch.tensor([[0.5, -1.0, 2.0, 0.0], [-1.0, -1.0, -1.0, 3.0]])
    selection = scorer().select(tokens_of(scores), training=False)
    assert selection.kept.tolist() == [[True, False, True, False], [False, False, False, True]]
    assert selection.weights.tolist() == [[0.5, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    assert torch.equal(selection.scores, scores) and selection.threshold == 0
    packing = Packing.of(selection.kept)
    assert packing.counts.rows == (2, 1) and packing.mask.tolist() == [[True, True], [True, False]]
    assert packing.indices[0].tolist() == [0, 2] and packing.indices[1, 0] == 3


@torch.no_grad()
def test_a_threshold_is_what_scores_are_compared_with_and_weights_begin_at():
    scores = torch.tensor([[0.5, 0.25, 2.0, 0.1]])
    mask = torch.tensor([[True, True, False, True]])
    selection = scorer().decide(tokens_of(scores, mask), scores, 0.2)
    assert selection.kept.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(selection.weights, torch.tensor([[0.3, 0.05, 0.0, 0.0]]))
    assert selection.threshold == 0.2 and torch.equal(selection.scores, scores)


@pytest.mark.parametrize(
    ("reverse", "expected"), [(False, [0.9 - 0.4, 0.6 - 0.0, 0.5]), (True, [0.9, 0.6 - 0.0, 0.5 - 0.4])]
)
def test_training_keeps_the_highest_and_subtracts_the_discarded(reverse, expected):
    scores = torch.tensor([[0.5, -3.0, 0.9, 0.4, 0.6]])  # by rank: 0.9 0.6 0.5 | 0.4 -3.0
    kept, weights = select_top(tokens_of(scores), scores, scores.clamp(0, 1), 0.6, reverse_discarded=reverse)
    assert kept[0].nonzero()[:, 0].tolist() == [0, 2, 4]
    by_index = {2: expected[0], 4: expected[1], 0: expected[2]}
    assert weights[0, [0, 2, 4]].tolist() == pytest.approx([by_index[i] for i in (0, 2, 4)])


def test_training_counts_each_row_without_its_padding():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    kept, _ = select_top(tokens_of(scores, mask), scores, scores.clamp(0, 1), 0.5, reverse_discarded=False)
    assert kept.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_weights_give_the_scorer_a_gradient_that_separates_kept_from_discarded():
    scores = torch.tensor([[0.6, 0.3]], requires_grad=True)
    kept, weights = select_top(tokens_of(scores), scores, scores.clamp(0, 1), 0.5, reverse_discarded=False)
    (weights * kept).sum().backward()
    assert scores.grad.tolist() == [[1.0, -1.0]]


def test_balancer_leaves_the_forward_alone_and_is_silent_in_range():
    scores = (torch.arange(500.0)[None] - 179.5) / 100  # 64% positive, mean absolute value inside [1, 4]
    assert balancing_gradient(scores, None, 0.64).abs().max() < 1e-6
    assert torch.equal(balanced_weights(scores.requires_grad_(), None, 0.64, 1.0), scores.clamp(0, 1))


def test_balancer_counts_positive_scores_whatever_their_distribution():
    scores = torch.cat([torch.linspace(-2, 0, 48), torch.linspace(1, 5, 52)])[None]  # 52% positive
    if_normal = NormalDist().cdf((scores.mean() / scores.std()).item())
    assert if_normal == pytest.approx(0.64, abs=0.05)
    assert (balancing_gradient(scores, None, 0.64) < -0.03).all()  # gradient descent moves against it: up


@pytest.mark.parametrize(("shift", "sign"), [(-3.0, -1.0), (3.0, 1.0)])
def test_balancer_pushes_the_share_of_positive_scores_back(shift, sign):
    torch.manual_seed(0)
    scores = (torch.randn(2, 200) * 2 + shift).requires_grad_()
    balanced_weights(scores, None, 0.64, 1.0).backward(torch.ones_like(scores))
    push = scores.grad - ((scores >= 0) & (scores <= 1)).float()
    assert push.square().mean().sqrt().item() == pytest.approx(0.04, rel=1e-3)
    assert push.mean().sign().item() == sign  # gradient descent moves against it


@pytest.mark.parametrize(("shift", "sign"), [(-3.0, -1.0), (3.0, 1.0)])
def test_balancer_reaches_a_level_whose_scores_have_no_gradient_of_their_own(shift, sign):
    scores = (torch.linspace(-1, 1, 8)[None] + shift).requires_grad_()  # all weights are 0, or all are 1
    weights = balanced_weights(scores, None, 0.5, 1.0)
    assert weights.unique().numel() == 1
    weights.backward(torch.tensor([[1.0, -1.0] * 4]))
    assert scores.grad.square().mean().sqrt().item() == pytest.approx(0.04, rel=1e-3)
    assert scores.grad.mean().sign().item() == sign


def test_bypass_flips_gradients_that_lead_out_of_range():
    bypass = Bypass(tiny_config("T(T)T", bypass_minimum=[0.9, 0.2], bypass_steps=10)).train()
    bypass.scale.data = torch.tensor([0.1, 1.2, 0.95])
    bypass(torch.tensor([[1.0, -1.0, 1.0]])).sum().backward()
    assert bypass.scale.grad.tolist() == [-1.0, 1.0, 1.0]


@pytest.mark.parametrize(("accumulated", "clear"), [(1, "none"), (3, "none")])
def test_the_lower_limit_falls_with_every_optimisation_step_whatever_loop_trains(accumulated, clear):
    bypass = Bypass(tiny_config("T(T)T", bypass_minimum=[0.9, 0.2], bypass_steps=7)).train()
    bypass.scale.data = torch.tensor([0.55, 0.55, 0.55])
    flipped = []
    for _ in range(8):  # limits: 0.9, 0.8, 0.7, 0.6, 0.5, ...
        for _ in range(accumulated):
            bypass(torch.ones(1, 3)).sum().backward()
        flipped.append(bool((bypass.scale.grad < 0).all()))
        bypass.zero_grad()
    assert flipped == [True] * 4 + [False] * 4
    assert int(bypass.minimum.step) == 8
    other = Bypass(tiny_config("T(T)T", bypass_minimum=[0.9, 0.2], bypass_steps=7)).train()
    other.scale.data = bypass.scale.data.clone()
    other.load_state_dict(bypass.state_dict())
    other(torch.ones(1, 3)).sum().backward()  # it goes on where the other one stopped
    assert (other.scale.grad > 0).all()


def test_only_passes_that_train_the_router_begin_a_step():
    router, tokens = scorer(balancer_steps=4), tokens_of(torch.randn(2, 8))
    with torch.no_grad():
        router.select(tokens, training=True)
    router.weight.requires_grad_(False)
    router.select(tokens, training=True)
    assert int(router.balancing.step) == 0
    router.weight.requires_grad_(True)
    router.select(tokens, training=True)
    assert int(router.balancing.step) == 1
