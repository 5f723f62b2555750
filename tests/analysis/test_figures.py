"""Figures: what they draw is in the trace, and token text stays text."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import figures
from analysis.lens import read_off


@pytest.mark.parametrize("span", [0, 1])
def test_the_histogram_counts_every_token_once_and_splits_at_the_threshold(trace, span):
    dropped, kept = figures.score_histogram(trace, span).data
    assert sum(dropped.y) == (trace.present[span] & ~trace.kept[span]).sum()
    assert sum(kept.y) == trace.kept[span].sum()
    assert all(x < 0 for x, y in zip(dropped.x, dropped.y, strict=True) if y)
    assert all(x > 0 for x, y in zip(kept.x, kept.y, strict=True) if y)


@pytest.mark.parametrize("build", [figures.score_by_position, figures.bypass_contribution])
def test_points_are_the_tokens_of_the_level(trace, build):
    dropped, kept = build(trace, 1).data
    np.testing.assert_array_equal(kept.x, trace.kept[1].nonzero()[0])
    np.testing.assert_array_equal(dropped.x, (trace.present[1] & ~trace.kept[1]).nonzero()[0])
    assert dropped.marker.symbol != kept.marker.symbol
    if build is figures.bypass_contribution:
        assert not np.asarray(dropped.y).any()


def test_token_text_is_escaped(trace):
    pieces = trace.pieces.copy().astype("U40")
    pieces[:] = "<a href='x'>&"
    figure = figures.score_by_position(replace(trace, pieces=pieces), 0)
    labels = [label for part in figure.data for label in part.text]
    assert labels
    assert all("<" not in label and "&lt;a href" in label for label in labels)


def test_retention_and_blocks_show_the_trace(trace):
    actual, nominal = figures.retention(trace).data
    np.testing.assert_allclose(actual.y, trace.retention)
    np.testing.assert_allclose(nominal.y, trace.retention_ratios)
    np.testing.assert_array_equal(figures.tokens_per_block(trace).data[0].y, trace.block_tokens)


def test_runs_scales_and_the_lens_show_what_was_found(trace, checkpoint):
    runs, gaps = figures.kept_runs(trace, 0).data
    assert np.dot(runs.x, runs.y) == trace.kept[0].sum()
    assert np.dot(gaps.x, gaps.y) == (~trace.kept[0]).sum()
    for line, scales in zip(figures.bypass_scales(trace).data, trace.bypass_scale, strict=True):
        np.testing.assert_array_equal(line.y, np.sort(scales))
    token = int(trace.kept[1].nonzero()[0][-1])
    found = read_off(checkpoint.model, trace.token_ids, token)
    best, target = figures.lens(found, np.asarray(["<b>"] * len(found.ids))).data
    np.testing.assert_array_equal(best.y, found.probabilities)
    np.testing.assert_array_equal(target.y, found.target_probabilities)
    assert all("<" not in label for label in best.text)
    histograms = figures.contribution_histogram(trace, found).data
    np.testing.assert_array_equal([h.x for h in histograms], found.contributions)


def test_a_selected_token_is_marked_where_it_is(trace):
    token = int(trace.kept[0].nonzero()[0][0])
    marked = figures.score_by_position(trace, 0, selected=token).data[-1]
    assert (marked.x[0], marked.y[0]) == (token, trace.scores[0, token])
    absent = int((~trace.present[1]).nonzero()[0][0])
    assert len(figures.score_by_position(trace, 1, selected=absent).data) == 2
