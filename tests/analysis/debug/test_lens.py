"""One token in depth, against the model's own output and the trace."""

import numpy as np
import pytest
import torch

from analysis import RunStopped
from analysis.debug.lens import confidence, logit_lens
from analysis.guard import Limit, silent
from tests.conftest import tiny_model


@pytest.mark.parametrize("which", ["kept twice", "kept once", "dropped", "last"])
def test_the_lens_ends_where_the_model_does_and_contributions_are_the_traces(trace, checkpoint, which):
    candidates = {
        "kept twice": trace.routing.kept[1],
        "kept once": trace.routing.kept[0] & ~trace.routing.kept[1],
        "dropped": ~trace.routing.kept[0],
        "last": np.arange(trace.num_tokens) == trace.num_tokens - 1,
    }[which].nonzero()[0]
    token = int(candidates[-1])
    lens = logit_lens(checkpoint.model, trace.prompt.token_ids, token)
    np.testing.assert_array_equal(lens.processed, trace.routing.processed[:, token])
    with torch.inference_mode():
        expected = checkpoint.model(torch.tensor(trace.prompt.token_ids)[None]).logits[0, token].softmax(-1)
    assert lens.ids[-1] == expected.argmax()
    np.testing.assert_allclose(lens.probabilities[-1], expected.max(), atol=1e-5)
    if token + 1 < trace.num_tokens:
        np.testing.assert_allclose(
            lens.target_probabilities[-1], expected[trace.prompt.token_ids[token + 1]], atol=1e-5
        )
    else:
        assert np.isnan(lens.target_probabilities).all()
    norms = np.linalg.norm(lens.contributions, axis=1)
    np.testing.assert_allclose(norms, trace.routing.contribution_norm[:, token], atol=1e-4)
    np.testing.assert_allclose(lens.norms[:, 0], trace.routing.stream_norm[:, token], rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(lens.norms[:, 1]), ~trace.routing.kept[:, token])


def test_a_dropped_token_reads_the_same_through_the_level(trace, checkpoint):
    token = int((~trace.routing.kept[0]).nonzero()[0][-1])
    lens = logit_lens(checkpoint.model, trace.prompt.token_ids, token)
    inside = (trace.routing.block_levels > 0).nonzero()[0]
    assert len(set(lens.ids[inside + 1])) == 1
    np.testing.assert_allclose(lens.probabilities[inside + 1], lens.probabilities[inside[0]], rtol=1e-5)


def test_a_token_dropped_by_the_second_of_two_levels_shows_what_the_first_made_of_it():
    model, ids = tiny_model("T(T)(T)"), np.arange(1, 41)
    with torch.inference_mode():
        records = model(torch.tensor(ids)[None], output_routing=True).routing
    token = int((records[0].kept[0] & ~records[1].kept[0]).nonzero()[-1])
    lens = logit_lens(model, ids, token)
    with torch.inference_mode():
        expected = model(torch.tensor(ids)[None]).logits[0, token].softmax(-1)
    np.testing.assert_allclose(lens.probabilities[-1], expected.max(), atol=1e-5)
    assert lens.probabilities[2] != pytest.approx(lens.probabilities[3]), "the bypass mixed in what was before"


def test_what_heavy_branches_add_to_a_token_is_the_routings():
    model, ids = tiny_model("C(C)T", window=8), np.arange(1, 41)
    with torch.inference_mode():
        records = model(torch.tensor(ids)[None], output_routing=True).routing
    for token in (20, 38, 39):
        norms = np.linalg.norm(logit_lens(model, ids, token).contributions, axis=1)
        np.testing.assert_allclose(norms, [record.contribution_norm[0, token] for record in records], atol=1e-4)
        assert np.isnan(norms[1])


def test_confidence_is_what_the_lens_reads_off_every_token(trace, checkpoint):
    seen = []
    found = confidence(
        checkpoint.model, trace.prompt.token_ids, progress=lambda share, stage, **values: seen.append(share)
    )
    np.testing.assert_array_equal(~np.isnan(found), trace.routing.processed)
    for token in range(trace.num_tokens):
        on = trace.routing.processed[:, token]
        expected = logit_lens(checkpoint.model, trace.prompt.token_ids, token).probabilities[1:]
        np.testing.assert_allclose(found[on, token], expected[on], atol=2e-3)
    assert seen == sorted(seen)
    with pytest.raises(RunStopped, match="time limit was reached"):
        confidence(checkpoint.model, trace.prompt.token_ids, progress=Limit(silent, -1))
