"""The divergence behind a shared head, against torch's own from whole distributions."""

import pytest
import torch
import torch.nn.functional as F

from subllm.model import divergence
from subllm.model.divergence import head_divergence


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_value_and_gradient_equal_those_of_whole_distributions(rows, monkeypatch):
    monkeypatch.setattr(divergence, "_ROWS", rows)
    torch.manual_seed(0)
    hidden, target, head = torch.randn(7, 16), torch.randn(7, 16), torch.randn(50, 16)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    value = head_divergence(ours, target, head)
    expected = F.kl_div(
        (theirs @ head.T).log_softmax(-1), (target @ head.T).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(value, expected)
    (2 * value).backward()
    (2 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_equal_states_diverge_by_nothing():
    hidden = torch.randn(5, 8)
    assert head_divergence(hidden, hidden, torch.randn(20, 8)).item() == pytest.approx(0, abs=1e-6)
