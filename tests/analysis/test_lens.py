"""One token in depth, against the model's own output and the trace."""

import numpy as np
import pytest
import torch

from analysis import RunStopped
from analysis.lens import confidence, read_off


@pytest.mark.parametrize("which", ["kept twice", "kept once", "dropped", "last"])
def test_the_lens_ends_where_the_model_does_and_contributions_are_the_traces(trace, checkpoint, which):
    candidates = {
        "kept twice": trace.kept[1],
        "kept once": trace.kept[0] & ~trace.kept[1],
        "dropped": ~trace.kept[0],
        "last": np.arange(trace.num_tokens) == trace.num_tokens - 1,
    }[which].nonzero()[0]
    token = int(candidates[-1])
    lens = read_off(checkpoint.model, trace.token_ids, token)
    np.testing.assert_array_equal(lens.processed, trace.processed[:, token])
    with torch.inference_mode():
        expected = checkpoint.model(torch.tensor(trace.token_ids)[None]).logits[0, token].softmax(-1)
    assert lens.ids[-1] == expected.argmax()
    np.testing.assert_allclose(lens.probabilities[-1], expected.max(), atol=1e-5)
    if token + 1 < trace.num_tokens:
        np.testing.assert_allclose(lens.target_probabilities[-1], expected[trace.token_ids[token + 1]], atol=1e-5)
    else:
        assert np.isnan(lens.target_probabilities).all()
    norms = np.linalg.norm(lens.contributions, axis=1)
    np.testing.assert_allclose(norms, trace.contribution_norm[:, token], atol=1e-4)
    np.testing.assert_allclose(lens.norms[:, 0], trace.stream_norm[:, token], rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(lens.norms[:, 1]), ~trace.kept[:, token])


def test_a_dropped_token_reads_the_same_through_the_span(trace, checkpoint):
    token = int((~trace.kept[0]).nonzero()[0][-1])
    lens = read_off(checkpoint.model, trace.token_ids, token)
    inside = (trace.block_spans >= 0).nonzero()[0]
    assert len(set(lens.ids[inside + 1])) == 1
    np.testing.assert_allclose(lens.probabilities[inside + 1], lens.probabilities[inside[0]], rtol=1e-5)


def test_confidence_is_what_the_lens_reads_off_every_token(trace, checkpoint):
    seen = []
    found = confidence(checkpoint.model, trace.token_ids, progress=lambda share, stage, **values: seen.append(share))
    np.testing.assert_array_equal(~np.isnan(found), trace.processed)
    for token in range(trace.num_tokens):
        on = trace.processed[:, token]
        expected = read_off(checkpoint.model, trace.token_ids, token).probabilities[1:]
        np.testing.assert_allclose(found[on, token], expected[on], atol=2e-3)
    assert seen == sorted(seen)
    with pytest.raises(RunStopped, match="after reading off 0 of 6 blocks"):
        confidence(checkpoint.model, trace.token_ids, seconds=-1)
