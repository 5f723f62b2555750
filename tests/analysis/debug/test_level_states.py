"""What a score and a bypass are made of is what the trace recorded of them."""

import numpy as np
import pytest
import torch

from analysis.debug.level_states import level_states
from analysis.trace.prefill import prefill
from subllm.routing import Replay
from tests.conftest import tiny_model

IDS = np.random.default_rng(0).integers(1, 97, 40)


def read(model):
    """Routing of the prompt, and the states of all its tokens around each level."""
    routing = prefill(model, torch.tensor(IDS)[None]).routing
    replay = Replay(torch.tensor(routing.kept), torch.tensor(routing.weights))
    states = [level_states(model, IDS, level, range(len(IDS)), replay) for level in routing.levels]
    return routing, states


@pytest.mark.parametrize(
    "structure, fields",
    [("TT(T(T)T)T", {}), ("T(TT)T", {"router": "mod"}), ("T(T)TCT", {"window": 4})],
    ids=["nested", "Mixture-of-Depths", "light/heavy"],
)
def test_the_terms_of_a_score_add_up_to_it(structure, fields):
    routing, found = read(tiny_model(structure, **fields))
    assert found
    for states, scores, reached in zip(found, routing.scores, routing.reached, strict=True):
        terms = np.stack([states.terms(token) for token in range(len(IDS))])
        np.testing.assert_allclose(terms[reached].sum(1), scores[reached], atol=1e-5)
        assert np.isnan(terms[~reached]).all()


@pytest.mark.parametrize("fields", [{}, {"router": "mod"}])
def test_what_a_level_adds_is_the_change_times_weight_and_bypass_and_nothing_to_a_dropped_token(fields):
    routing, found = read(tiny_model("TT(T(T)T)T", **fields))
    assert len(found) == 2
    for row, states in enumerate(found):
        kept, dropped = routing.kept[row], routing.dropped[row]
        assert kept.any() and dropped.any()
        scale = routing.bypass_scale[row] if routing.bypassed[row] else 1
        change = states.inside[kept] - states.before[kept]
        added = scale * routing.weights[row, kept, None] * change
        np.testing.assert_allclose((states.after - states.before)[kept], added, atol=1e-5)
        assert np.abs(added).max() > 0.01
        assert (states.after[dropped] == states.before[dropped]).all()
        assert np.isnan(states.inside[dropped]).all()


def test_a_score_that_a_network_predicts_has_no_terms():
    _, (states,) = read(tiny_model("T(T)T", router="mod", predictor=True))
    assert states.weight is None
    assert np.isfinite(states.before).all()


def test_only_the_prompt_up_to_the_last_token_is_run():
    model = tiny_model("T(T)T")
    routing = prefill(model, torch.tensor(IDS)[None]).routing
    replay = Replay(torch.tensor(routing.kept), torch.tensor(routing.weights))
    whole = level_states(model, IDS, 1, [2, 4], replay)
    part = level_states(model, IDS[:5], 1, [2, 4], replay)
    assert (whole.before == part.before).all() and (whole.after == part.after).all()
