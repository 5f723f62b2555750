"""Figures: what they draw is in the trace, and token text stays text."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.debug.lens import logit_lens
from analysis.figures import style
from analysis.figures import trace as figures
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.load import load_checkpoint
from tests.analysis.trace.test_trace import make_trace


def at_threshold(trace, threshold):
    """The trace as if every router had compared its scores with another threshold."""
    routing = trace.routing
    thresholds, kept = np.full(2, threshold, dtype=np.float32), np.nan_to_num(routing.scores, nan=-np.inf) > threshold
    return replace(trace, routing=replace(routing, thresholds=thresholds, kept=kept))


def test_thirty_lines_of_a_figure_look_different_and_so_do_their_points():
    assert len({tuple(style.line(number).values()) for number in range(30)}) == 30
    assert len({style.line(number)["dash"] for number in range(6)}) == 6, "without colours, too: a level each"
    assert len({(marker["color"], marker["symbol"]) for marker in (style.marker(n, 6) for n in range(30))}) == 30


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.3, -1.7, 50.0])
def test_the_histogram_counts_every_token_once_and_splits_at_the_recorded_threshold(trace, level, threshold):
    trace = at_threshold(trace, threshold)
    figure = figures.score_histogram(trace, level)
    kept, dropped = figure.data
    assert sum(dropped.y) == trace.routing.dropped[level - 1].sum()
    assert sum(kept.y) == trace.routing.kept[level - 1].sum()
    threshold = trace.routing.thresholds[0]
    assert [shape.x0 for shape in figure.layout.shapes] == [threshold]
    assert figure.layout.annotations[0].text == f"threshold {threshold:.3g}"
    assert all(x < threshold for x, y in zip(dropped.x, dropped.y, strict=True) if y)
    assert all(x > threshold for x, y in zip(kept.x, kept.y, strict=True) if y)


def test_forced_tokens_stand_at_their_scores_on_either_side_of_the_threshold(trace):
    everything = replace(trace, routing=replace(trace.routing, kept=trace.routing.reached))
    kept, dropped = figures.score_histogram(everything, 1).data
    assert (sum(kept.y), sum(dropped.y)) == (trace.num_tokens, 0)
    below = sum(y for x, y in zip(kept.x, kept.y, strict=True) if x < 0)
    assert below == (trace.routing.scores[0] < 0).sum()


def test_a_level_without_scores_has_no_histogram_and_all_other_figures(trace):
    thresholds, scores = trace.routing.thresholds.copy(), trace.routing.scores.copy()
    thresholds[0] = scores[0] = np.nan
    routing = replace(trace.routing, thresholds=thresholds, scores=scores, routers=np.asarray(["even", "subllm"]))
    other = replace(trace, routing=routing)
    with pytest.raises(AnalysisError, match="Level 1 has no importance scores: its router, even"):
        figures.score_histogram(other, 1)
    for build in (figures.bypass_contribution, figures.processed_share, figures.kept_runs):
        assert build(other, 1) == build(trace, 1)


def test_levels_are_numbered_from_1_and_say_what_they_are_in_where_that_is_not_the_one_before(trace):
    assert [figures.level_name(trace, level) for level in (1, 2)] == ["Level 1", "Level 2"]
    apart = replace(trace, routing=replace(trace.routing, parents=np.asarray([0, 0])))
    assert figures.level_name(apart, 2) == "Level 2"
    third = make_trace("T(T(T)T)(T)")
    third = replace(third, routing=replace(third.routing, parents=np.asarray([0, 1, 1])))
    assert figures.level_name(third, 3) == "Level 3 (inside Level 1)"


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("build", [figures.bypass_contribution, figures.processed_share])
def test_what_levels_add_is_counted_for_every_token_once_and_dropped_ones_add_nothing(trace, build, level):
    kept, dropped = build(trace, level).data
    assert sum(kept.y) == trace.routing.kept[level - 1].sum()
    assert dropped.y[0] == sum(dropped.y) == trace.routing.dropped[level - 1].sum()
    assert dropped.marker.pattern.shape != kept.marker.pattern.shape


@pytest.mark.parametrize("name", ["everything", "nothing"])
@pytest.mark.parametrize("text", ["cat", "the cat sat on the mat"])
def test_levels_that_keep_all_or_nothing_can_be_drawn(odd_checkpoints, name, text):
    checkpoint = load_checkpoint(odd_checkpoints / name, "cpu", "float32")
    trace = record_trace(checkpoint, read_prompt(text, checkpoint.tokenizer, 64), RunOptions(new_tokens=2))
    assert trace.routing.kept.all() if name == "everything" else not trace.routing.kept.any()
    for build in (figures.score_histogram, figures.bypass_contribution, figures.processed_share, figures.kept_runs):
        for level in (1, 2):
            shown = build(trace, level).data
            if build is not figures.kept_runs:
                assert sum(sum(bars.y) for bars in shown) == trace.routing.reached[level - 1].sum()
    assert figures.tokens_per_block(trace).data


def test_blocks_show_the_trace(trace):
    np.testing.assert_array_equal(figures.tokens_per_block(trace).data[0].y, trace.routing.block_tokens)


def test_runs_scales_and_the_lens_show_what_was_found(trace, checkpoint):
    routing = trace.routing
    runs, gaps = figures.kept_runs(trace, 1).data
    assert np.dot(runs.x, runs.y) == routing.kept[0].sum()
    assert np.dot(gaps.x, gaps.y) == (~routing.kept[0]).sum()
    for line, scales in zip(figures.bypass_scales(trace).data, routing.bypass_scale, strict=True):
        np.testing.assert_array_equal(line.y, np.sort(scales))
    token = int(routing.kept[1].nonzero()[0][-1])
    found = logit_lens(checkpoint.model, trace.prompt.token_ids, token)
    best, target = figures.lens(found, np.asarray(["<b>"] * len(found.ids))).data
    np.testing.assert_array_equal(best.y, found.probabilities)
    np.testing.assert_array_equal(target.y, found.target_probabilities)
    assert all("<" not in label for label in best.text)
    histograms = figures.contribution_histogram(trace, found).data
    np.testing.assert_array_equal([h.x for h in histograms], found.contributions)
