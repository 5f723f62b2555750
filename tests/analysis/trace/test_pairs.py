"""Side by side: tokens find each other across an edit, and differences are counted."""

from dataclasses import fields, replace

import numpy as np
import pytest

from analysis import Routing
from analysis.run import RunOptions, record_trace
from analysis.trace.pairs import differing, overlap, pair
from analysis.trace.tokenize import read_prompt


@pytest.fixture(scope="module")
def traces(checkpoint):
    texts = "the cat sat on the mat and then", "the cat sat on a big mat and then"
    return [
        record_trace(checkpoint, read_prompt(text, checkpoint.tokenizer, 512), RunOptions(0, False), name="tiny")
        for text in texts
    ]


def test_a_trace_beside_itself_is_the_same(traces):
    first, _ = traces
    pairing = pair(first.prompt, first.prompt)
    found = overlap(first.routing, first.routing, pairing)
    assert pairing.first.tolist() == list(range(first.num_tokens))
    assert found.index.tolist() == [1, 2]
    assert found["both"].tolist() == [1.0] * 2
    assert found["differ"].sum() == 0
    assert found["correlation"].dropna().tolist() == pytest.approx([1.0] * found["correlation"].notna().sum())
    assert not any(len(differing(first.routing, first.routing, pairing, level)) for level in first.routing.levels)


def test_tokens_are_paired_across_an_edit(traces):
    first, second = (trace.prompt for trace in traces)
    pairing = pair(first, second)
    assert (first.pieces[pairing.first] == second.pieces[pairing.second]).all()
    assert (np.diff(pairing.first) > 0).all()
    assert (np.diff(pairing.second) > 0).all()
    assert "".join(second.pieces[np.setdiff1d(np.arange(len(second)), pairing.second)]).strip() != ""
    before = next(index for index, (a, b) in enumerate(zip(first.pieces, second.pieces, strict=False)) if a != b)
    assert pairing.first[:before].tolist() == list(range(before))
    one, two = (trace.routing for trace in traces)
    found = overlap(one, two, pairing)
    for level in one.levels:
        kept = one.kept[level - 1, pairing.first], two.kept[level - 1, pairing.second]
        assert found["differ"][level] == (kept[0] != kept[1]).sum() == len(differing(one, two, pairing, level))
        assert found["both"][level] == (kept[0] & kept[1]).sum() / max((kept[0] | kept[1]).sum(), 1)
    assert (one.kept[0, :before] == two.kept[0, :before]).all(), "what comes later changes nothing before it"


def test_levels_that_only_one_has_are_left_out_and_without_scores_nothing_correlates(traces):
    both = traces[0].routing
    names = [field.name for field in fields(Routing) if field.name not in ("block_levels", "work")]
    first = {name: getattr(both, name)[:1] for name in names}
    outer = replace(both, **first, block_levels=np.asarray([0, 1, 0]), work=None)
    pairing = pair(traces[0].prompt, traces[0].prompt)
    for one, two in ((outer, both), (both, outer)):
        found = overlap(one, two, pairing)
        assert found.index.tolist() == [1]
        assert found["correlation"].notna().all()
    unscored = replace(outer, scores=np.full_like(outer.scores, np.nan), thresholds=np.full(1, np.nan, np.float32))
    assert overlap(unscored, both, pairing)["correlation"].isna().all()
