"""Agreement of predictions, against transformers' own loss and closed forms."""

import math

import numpy as np
import torch
from torch import nn

from analysis.trace.agreement import agree


def test_perplexity_is_the_exponential_of_transformers_loss(trace, checkpoint):
    ids = torch.tensor(trace.prompt.token_ids)[None]
    with torch.inference_mode():
        loss = checkpoint.model(ids, labels=ids).loss.item()
    assert math.isclose(trace.perplexity, math.exp(loss), rel_tol=1e-4)
    assert np.isnan(trace.likelihood.surprisal[0])
    assert math.isfinite(trace.agreement.perplexity) and trace.agreement.reference == "routing off"


def test_a_model_agrees_with_itself_and_not_with_another():
    torch.manual_seed(0)
    hidden, ids = torch.randn(600, 8), torch.randint(50, (600,))
    head, other = nn.Linear(8, 50, bias=False), nn.Linear(8, 50, bias=False)
    surprisal, same = agree(head, hidden, head, hidden, ids, "twin")
    assert same.agrees.all()
    np.testing.assert_allclose(same.divergence, 0, atol=1e-6)
    np.testing.assert_array_equal(surprisal, same.surprisal)
    surprisal, apart = agree(other, hidden, head, hidden, ids, "twin")
    expected = nn.functional.kl_div(
        other(hidden).log_softmax(-1), head(hidden).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    np.testing.assert_allclose(apart.divergence, expected.detach(), atol=1e-5)
    np.testing.assert_array_equal(apart.agrees, (other(hidden).argmax(-1) == head(hidden).argmax(-1)))
    targets = nn.functional.cross_entropy(other(hidden[:-1]), ids[1:], reduction="none")
    np.testing.assert_allclose(surprisal[1:], targets.detach(), atol=1e-5)
