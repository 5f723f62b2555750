"""Statistics of a trace, against sets and counting by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.statistics import rule_overlap, run_lengths


@pytest.mark.parametrize("span", [0, 1])
def test_the_two_rules_are_compared_as_sets(trace, span):
    found = rule_overlap(trace, span)
    reached = trace.present[span].nonzero()[0]
    count = math.ceil(0.64 * len(reached))
    top = set(sorted(reached, key=lambda i: (-trace.scores[span, i], i))[:count])
    kept = set(trace.kept[span].nonzero()[0])
    assert found.overlap == len(top & kept) / len(top | kept)
    assert set(found.differing) == top ^ kept
    assert (found.by_threshold, found.by_rank, found.both) == (len(kept), len(top), len(top & kept))


def test_runs_and_gaps_alternate_and_cover_the_level(trace):
    runs, gaps = run_lengths(trace, 0)
    assert runs.sum() == trace.kept[0].sum()
    assert gaps.sum() == (~trace.kept[0]).sum()
    assert abs(len(runs) - len(gaps)) <= 1
    kept = np.zeros((2, 7), dtype=bool)
    kept[0] = [1, 1, 0, 1, 0, 0, 0]
    small = replace(trace, token_ids=np.arange(7), kept=kept, scores=np.where(kept, 1.0, -1.0))
    runs, gaps = run_lengths(small, 0)
    assert runs.tolist() == [2, 1]
    assert gaps.tolist() == [1, 3]
