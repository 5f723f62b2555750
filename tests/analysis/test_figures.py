"""Figures: what they draw is in the trace, and token text stays text."""

import numpy as np
import pytest

from analysis import figures
from analysis.lens import read_off
from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace
from subllm.checkpoints import load_checkpoint


@pytest.mark.parametrize("span", [0, 1])
def test_the_histogram_counts_every_token_once_and_splits_at_the_threshold(trace, span):
    kept, dropped = figures.score_histogram(trace, span).data
    assert sum(dropped.y) == (trace.present[span] & ~trace.kept[span]).sum()
    assert sum(kept.y) == trace.kept[span].sum()
    assert all(x < 0 for x, y in zip(dropped.x, dropped.y, strict=True) if y)
    assert all(x > 0 for x, y in zip(kept.x, kept.y, strict=True) if y)


@pytest.mark.parametrize("span", [0, 1])
@pytest.mark.parametrize("build", [figures.bypass_contribution, figures.processed_share])
def test_what_levels_add_is_counted_for_every_token_once_and_dropped_ones_add_nothing(trace, build, span):
    kept, dropped = build(trace, span).data
    assert sum(kept.y) == trace.kept[span].sum()
    assert dropped.y[0] == sum(dropped.y) == trace.dropped[span].sum()
    assert dropped.marker.pattern.shape != kept.marker.pattern.shape


@pytest.mark.parametrize("name", ["everything", "nothing"])
@pytest.mark.parametrize("text", ["cat", "the cat sat on the mat"])
def test_levels_that_keep_all_or_nothing_can_be_drawn(odd_checkpoints, name, text):
    checkpoint = load_checkpoint(odd_checkpoints / name, "cpu", "float32")
    trace = record_trace(checkpoint, None, read_prompt(text, checkpoint.tokenizer, 64), RunOptions(new_tokens=2))
    assert trace.kept.all() if name == "everything" else not trace.kept.any()
    for build in (figures.score_histogram, figures.bypass_contribution, figures.processed_share, figures.kept_runs):
        for span in (0, 1):
            shown = build(trace, span).data
            if build is not figures.kept_runs:
                assert sum(sum(bars.y) for bars in shown) == trace.present[span].sum()
    assert figures.tokens_per_block(trace).data


def test_blocks_show_the_trace(trace):
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
