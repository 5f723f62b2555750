"""The selection rules and the training-time gradients, against cases worked out by hand."""

import pytest
import torch

from subllm.balancer import balanced_weights, balancing_gradient
from subllm.subsampling import select_positive, select_top
from subllm.upsampling import Bypass


def test_inference_keeps_positive_scores_with_clamped_weights():
    selection = select_positive(torch.tensor([[0.5, -1.0, 2.0, 0.0], [-1.0, -1.0, -1.0, 3.0]]), None)
    assert selection.counts == [2, 1]
    assert selection.indices[0].tolist() == [0, 2]
    assert selection.indices[1, 0].item() == 3
    assert selection.weights.tolist() == [[0.5, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("reverse", "expected"), [(False, [0.9 - 0.4, 0.6 - 0.0, 0.5]), (True, [0.9, 0.6 - 0.0, 0.5 - 0.4])]
)
def test_training_keeps_the_highest_and_subtracts_the_discarded(reverse, expected):
    scores = torch.tensor([[0.5, -3.0, 0.9, 0.4, 0.6]])  # by rank: 0.9 0.6 0.5 | 0.4 -3.0
    selection = select_top(scores, scores.clamp(0, 1), None, 0.6, reverse_discarded=reverse)
    assert selection.indices.tolist() == [[0, 2, 4]]
    by_index = {2: expected[0], 4: expected[1], 0: expected[2]}
    assert selection.weights[0].tolist() == pytest.approx([by_index[i] for i in (0, 2, 4)])


def test_training_counts_each_row_without_its_padding():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    selection = select_top(scores, scores.clamp(0, 1), mask, 0.5, reverse_discarded=False)
    assert selection.counts == [2, 1]
    assert selection.indices[0].tolist() == [2, 3]
    assert selection.indices[1, 0].item() == 1


def test_weights_give_the_scorer_a_gradient_that_separates_kept_from_discarded():
    scores = torch.tensor([[0.6, 0.3]], requires_grad=True)
    select_top(scores, scores.clamp(0, 1), None, 0.5, reverse_discarded=False).weights.sum().backward()
    assert scores.grad.tolist() == [[1.0, -1.0]]


def test_balancer_leaves_the_forward_alone_and_is_silent_in_range():
    torch.manual_seed(0)
    scores = (torch.randn(4, 500) + 0.3585) * 1.6  # 64% positive, mean absolute value inside [1, 4]
    assert balancing_gradient(scores, None, 0.64).abs().max() < 0.2
    assert torch.equal(balanced_weights(scores.requires_grad_(), None, 0.64, 1.0), scores.clamp(0, 1))


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
    bypass = Bypass(3).train()
    bypass.scale.data = torch.tensor([0.1, 1.2, 0.95])
    bypass.minimum = 0.9
    bypass(torch.tensor([[1.0, -1.0, 1.0]])).sum().backward()
    assert bypass.scale.grad.tolist() == [-1.0, 1.0, 1.0]
