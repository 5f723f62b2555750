"""Statistics over documents, against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from analysis.corpus.statistics import (
    benjamini_hochberg,
    chances,
    entropy,
    estimates,
    mixed,
    resample_weights,
)
from analysis.quality.paired import student_chance


@pytest.mark.parametrize("freedom", [1, 4, 300, 100_000])
def test_the_chance_of_a_t_is_scipys(freedom):
    for size in (0, 0.5, 2, 4):
        assert student_chance(size, freedom) == pytest.approx(2 * stats.t.sf(size, freedom), abs=2e-4)


def test_marks_after_benjamini_and_hochberg_are_scipys():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random(200), rng.random(40) ** 6])
    expected = stats.false_discovery_control(values, method="bh") <= 0.05
    assert benjamini_hochberg(values).tolist() == expected.tolist()
    assert not benjamini_hochberg(np.array([np.nan, np.nan])).any()


def test_weights_are_poisson_and_depend_on_nothing_but_the_document():
    keys = mixed(np.arange(4000, dtype=np.uint64))
    weights = resample_weights(keys, 50)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(weights[:, :2].T)[0, 1]) < 0.05
    assert (resample_weights(keys[[7, 3]], 50) == weights[[7, 3]]).all()


def test_intervals_hold_the_truth_though_tokens_of_a_document_are_alike():
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(200):
        shares = rng.beta(2, 2, size=30)  # of documents; the truth is a half
        tokens = rng.integers(20, 60, size=30)
        kept = rng.binomial(tokens, shares)
        weights = resample_weights(rng.integers(0, 2**63, size=30).astype(np.uint64))
        value = kept.sum() / tokens.sum()
        found = estimates(
            np.array([value]), (weights.T @ kept / (weights.T @ tokens))[:, None], np.array([30]), low=0, high=1
        )
        hits += bool(found.low[0] <= 0.5 <= found.high[0])
        naive += abs(value - 0.5) < 1.96 * (value * (1 - value) / tokens.sum()) ** 0.5
    assert 0.9 < hits / 200 < 0.99
    assert naive / 200 < 0.6  # tokens counted as independent


def test_one_document_has_no_interval_and_no_test():
    found = estimates(np.array([0.5]), np.full((200, 1), 0.5), np.array([1]))
    assert np.isnan([found.low[0], found.high[0], found.errors[0]]).all()
    assert np.isnan(chances(found.values, found.errors, np.array([1]))).all()


def test_entropy_given_a_group_that_decides_is_zero_and_of_fair_coins_is_one_bit():
    assert entropy(np.array([50, 70]), np.array([0, 1])) == pytest.approx(0)
    rng = np.random.default_rng(2)
    heads = rng.binomial(20, 0.5, size=500)  # 500 types that occur 20 times each, and decide nothing
    counts, groups = np.stack([heads, 20 - heads], 1).ravel(), np.repeat(np.arange(500), 2)
    plain = stats.entropy(np.stack([heads, 20 - heads]), base=2).mean()
    corrected = entropy(counts, groups)
    assert abs(1 - corrected) < (1 - plain) / 4  # most of what rare types only seem to decide is taken out
