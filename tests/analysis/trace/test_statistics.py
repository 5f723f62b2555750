"""Statistics of a trace, against sets and counting by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.trace.statistics import jaccard, rule_overlap, run_lengths, score_rank
from subllm.routing import ROUTERS, Router


def edited(routing):
    """The same tokens with the lowest score kept and the highest one dropped, as an edit would."""
    kept = routing.kept.copy()
    kept[0, np.nanargmin(routing.scores[0])] = True
    kept[0, np.nanargmax(routing.scores[0])] = False
    return replace(routing, kept=kept)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("change", [lambda routing: routing, edited])
def test_what_was_kept_is_compared_with_the_highest_scores_as_sets(trace, level, change):
    routing = change(trace.routing)
    found = rule_overlap(routing, level)
    reached = routing.reached[level - 1].nonzero()[0]
    count = math.ceil(0.64 * len(reached))
    top = set(sorted(reached, key=lambda i: (-routing.scores[level - 1, i], i))[:count])
    kept = set(routing.kept[level - 1].nonzero()[0])
    assert found.overlap == len(top & kept) / len(top | kept)
    assert set(found.differing) == top ^ kept
    assert (found.kept, found.highest) == (len(kept), len(top))


def test_the_router_says_how_many_tokens_training_keeps(trace, monkeypatch):
    class Half(Router):
        @staticmethod
        def quota(retention_ratio, lengths):
            return lengths // 2

    monkeypatch.setitem(ROUTERS, "half", Half)
    for name, expected in (
        ("half", lambda n: n // 2),
        ("mod", lambda n: int(0.64 * n)),
        ("colt5", lambda n: int(0.64 * n)),
    ):
        routing = replace(trace.routing, routers=np.asarray([name, "somebody's own"]))
        reached = routing.reached.sum(1)
        assert rule_overlap(routing, 1).highest == expected(reached[0])
        assert rule_overlap(routing, 2).highest == math.ceil(0.64 * reached[1])


def test_ranks_count_the_scores_above(trace):
    for token in trace.routing.reached[1].nonzero()[0]:
        scores = trace.routing.scores[1][trace.routing.reached[1]]
        expected = sorted(scores, reverse=True).index(trace.routing.scores[1, token]) + 1, len(scores)
        assert score_rank(trace.routing, 2, token) == expected


def test_levels_without_scores_have_neither_rule_nor_rank(trace):
    thresholds, scores = trace.routing.thresholds.copy(), trace.routing.scores.copy()
    thresholds[0] = scores[0] = np.nan
    routing = replace(trace.routing, thresholds=thresholds, scores=scores, routers=np.asarray(["even", "subllm"]))
    for ask in (lambda: rule_overlap(routing, 1), lambda: score_rank(routing, 1, 0)):
        with pytest.raises(AnalysisError, match="Level 1 has no importance scores: its router, even"):
            ask()
    assert rule_overlap(routing, 2).kept == trace.routing.kept[1].sum()
    assert run_lengths(routing, 1)[0].sum() == trace.routing.kept[0].sum()


def test_runs_and_gaps_alternate_and_cover_the_level(trace):
    routing = trace.routing
    runs, gaps = run_lengths(routing, 1)
    assert runs.sum() == routing.kept[0].sum()
    assert gaps.sum() == routing.dropped[0].sum()
    assert abs(len(runs) - len(gaps)) <= 1
    kept = np.zeros_like(routing.kept)
    kept[0, :7] = [1, 1, 0, 1, 0, 0, 0]
    reached = np.zeros_like(kept)
    reached[0, [*range(7), 9]] = True
    runs, gaps = run_lengths(replace(routing, kept=kept, reached=reached), 1)
    assert runs.tolist() == [2, 1]
    assert gaps.tolist() == [1, 4]
    assert [each.tolist() for each in run_lengths(replace(routing, kept=kept, reached=reached), 2)] == [[], []]


def test_overlap_of_sets():
    first = np.asarray([True, True, False, False])
    assert jaccard(first, np.asarray([True, False, True, False])) == pytest.approx(1 / 3)
    assert jaccard(first, first) == 1
    assert jaccard(~(first | ~first), ~(first | ~first)) == 1
    assert jaccard(np.stack([first, ~first]), first).tolist() == [1, 0]
