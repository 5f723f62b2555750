"""Figures: what they draw is in the trace, and token text stays text."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import figures


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
