"""Figures of interventions, attributions and pairs: what they draw is what was found, and token text stays text."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.debug.conductance import Conductance
from analysis.debug.generation import NewToken
from analysis.figures import debug as debug_figures
from analysis.figures.terms import level_name
from analysis.trace.pairs import pair
from tests.analysis.trace.test_trace import make_trace


def test_pairs_of_scores_are_split_by_who_keeps_them_with_a_line_at_each_threshold():
    first, second = make_trace(tokens=9, seed=1), make_trace(tokens=9, seed=2)
    second = replace(second, prompt=first.prompt)
    thresholds = np.asarray([-0.4, np.nan, 0.2], dtype=np.float32)
    second = replace(second, routing=replace(second.routing, thresholds=thresholds))
    pairing = pair(first.prompt, second.prompt)
    figure = debug_figures.score_pairs(first, second, pairing, 1)
    a, b = first.routing.kept[0], second.routing.kept[0]
    for points, chosen in zip(figure.data, (a == b, a & ~b, ~a & b), strict=True):
        np.testing.assert_array_equal(points.x, first.routing.scores[0][chosen])
        np.testing.assert_array_equal(points.y, second.routing.scores[0][chosen])
    vertical, horizontal = figure.layout.shapes
    assert (vertical.x0, vertical.x1) == (first.routing.thresholds[0],) * 2
    assert (horizontal.y0, horizontal.y1) == (thresholds[0],) * 2
    with pytest.raises(AnalysisError, match="Level 2 has no importance scores"):
        debug_figures.score_pairs(first, second, pairing, 2)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_came_past_a_level_is_told_apart_by_whether_the_level_kept_the_token(level):
    trace, rng = make_trace(tokens=6), np.random.default_rng(0)
    flow = Conductance(rng.random(5), rng.normal(size=(3, 6)), rng.normal(size=(3, 6)))
    dropped, kept, added = debug_figures.past_level(trace, flow, level).data
    tokens = np.asarray([int(name.partition(":")[0]) for name in dropped.y])
    assert sorted(tokens) == list(range(6))
    own = trace.routing.kept[level - 1, tokens]
    np.testing.assert_array_equal(dropped.x, np.where(own, 0, flow.carried[level - 1, tokens]))
    np.testing.assert_array_equal(kept.x, np.where(own, flow.carried[level - 1, tokens], 0))
    np.testing.assert_array_equal(added.x, flow.added[level - 1, tokens])


def test_the_growth_of_a_cache_names_levels_as_the_page_does():
    trace = make_trace("T(T(T)T)(T)", tokens=6)
    trace = replace(
        trace,
        routing=replace(
            trace.routing, site_kinds=np.asarray(["query", "level", "level"]), site_blocks=np.asarray([1, -1, -1])
        ),
    )
    written = [NewToken(5, True, (), (True,) * 3, (True,) * 3, (1.0,) * 3, (None,) * 3, 3, 0.1, (4, 3, 2, 1))]
    figure = debug_figures.level_growth(trace, written, ())
    assert [line.name for line in figure.data][1:] == [level_name(trace, level) for level in (1, 2, 3)]
    assert figure.data[1].name == "Block 1 · queries"


def test_attention_is_drawn_of_blocks_that_processed_each_token():
    trace = make_trace(tokens=6)
    rows = np.ones((5, 6))
    (heat,) = debug_figures.attention(trace, rows).data
    np.testing.assert_array_equal(heat.z, np.where(trace.routing.processed, rows, np.nan))


def test_token_text_is_escaped_in_labels():
    trace = make_trace(tokens=6)
    pieces = np.asarray(["<b>", "a", "b", "c", "d", "e"])
    trace = replace(trace, prompt=replace(trace.prompt, pieces=pieces))
    (line,) = debug_figures.by_position(trace, np.arange(6), "x").data
    assert "<" not in "".join(line.text) and len(line.text) == 6
    untouched, edited = debug_figures.two_distributions(pieces[:2], np.asarray([[0.5, 0.25], [0.75, 0.125]])).data
    assert "<" not in "".join(untouched.y)
    assert (untouched.x.tolist(), edited.x.tolist()) == ([0.5, 0.25], [0.75, 0.125])


def test_ticks_of_small_probabilities_are_not_rounded_to_the_same_whole_percent():
    probabilities = np.asarray([[0.009, 0.006], [0.007, 0.008]])
    figure = debug_figures.two_distributions(np.asarray(["a", "b"]), probabilities)
    assert figure.layout.xaxis.tickformat not in (None, ".0%")


def test_where_all_is_0_no_axis_goes_from_minus_1_to_1():
    trace, zeros = make_trace(tokens=6), np.zeros((3, 6))
    flow = Conductance(np.zeros(5), zeros, zeros)
    for figure in (
        debug_figures.by_position(trace, zeros[0], "x"),
        debug_figures.through_blocks(flow),
        debug_figures.past_level(trace, flow, 1),
    ):
        assert "tozero" in (figure.layout.xaxis.rangemode, figure.layout.yaxis.rangemode)
