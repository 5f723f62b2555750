"""Side by side: tokens find each other across an edit, and differences are counted."""

import numpy as np
import pytest

from analysis.beside import differing, overlap, pair
from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace


@pytest.fixture(scope="module")
def traces(checkpoint):
    texts = "the cat sat on the mat and then", "the cat sat on a big mat and then"
    return [
        record_trace(checkpoint, None, read_prompt(text, checkpoint.tokenizer, 512), RunOptions(0, False), name="tiny")
        for text in texts
    ]


def test_a_trace_beside_itself_is_the_same(traces):
    first, _ = traces
    pairing = pair(first, first)
    found = overlap(first, first, pairing)
    assert pairing.first.tolist() == list(range(first.num_tokens))
    assert found["both"].tolist() == [1.0] * first.num_spans
    assert found["differ"].sum() == 0
    assert found["correlation"].dropna().tolist() == pytest.approx([1.0] * found["correlation"].notna().sum())
    assert not any(len(tokens) for tokens in differing(first, first, pairing))


def test_tokens_are_paired_across_an_edit(traces):
    first, second = traces
    pairing = pair(first, second)
    assert (first.pieces[pairing.first] == second.pieces[pairing.second]).all()
    assert (np.diff(pairing.first) > 0).all()
    assert (np.diff(pairing.second) > 0).all()
    assert "".join(second.pieces[np.setdiff1d(np.arange(second.num_tokens), pairing.second)]).strip() != ""
    before = next(index for index, (a, b) in enumerate(zip(first.pieces, second.pieces, strict=False)) if a != b)
    assert pairing.first[:before].tolist() == list(range(before))
    found = overlap(first, second, pairing)
    kept = first.kept[0, pairing.first], second.kept[0, pairing.second]
    assert found["differ"][0] == (kept[0] != kept[1]).sum() == len(differing(first, second, pairing)[0])
    assert (first.kept[0, :before] == second.kept[0, :before]).all(), "what comes later changes nothing before it"
