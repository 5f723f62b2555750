"""Flags on odd things, on routings made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.figures.terms import flag_in_words
from analysis.trace.flags import FlagKind, flags, special_tokens


def routed(trace, kept, scores=None, **fields):
    """The trace with Level 1 keeping these tokens, and Level 2 keeping all that Level 1 keeps but every third."""
    routing = trace.routing
    inner = kept & (np.arange(len(kept)) % 3 > 0)
    both, reached = np.stack([kept, inner]), np.stack([np.ones_like(kept), kept])
    known = np.full(both.shape, 0.5) if scores is None else np.stack([scores, np.full(len(kept), 0.5)])
    known = np.where(reached, known, np.nan)
    thresholds = fields.setdefault("thresholds", np.zeros(2))
    weights = np.where(both, np.minimum(known - thresholds[:, None], 1), 0)
    changed = {"kept": both, "reached": reached, "scores": known, "weights": weights}
    return replace(trace, routing=replace(routing, **changed, **fields))


def kinds(trace, level=1):
    return {flag.kind for flag in flags(trace) if flag.level == level}


@pytest.fixture
def everything(trace):
    return np.ones(trace.num_tokens, dtype=bool)


def usual(trace):
    """About 64% of the tokens, none of them special."""
    return np.arange(trace.num_tokens) % 3 > 0


def test_a_level_that_keeps_all_or_nothing_is_flagged(trace, everything):
    assert kinds(routed(trace, usual(trace))) == set()
    assert kinds(routed(trace, everything)) == {FlagKind.ALL}
    assert kinds(routed(trace, ~everything)) == {FlagKind.NOTHING}
    assert kinds(routed(trace, ~everything), 2) == set()  # which no token reaches
    ratios = np.array([1.0, 0.64])
    assert kinds(routed(trace, everything, retention_ratios=ratios)) == set()


def test_a_retention_far_from_the_nominal_one_is_flagged_beyond_chance(trace, everything):
    few = np.arange(trace.num_tokens) % 8 == 0
    (flag,) = [flag for flag in flags(routed(trace, few)) if flag.level == 1]
    assert flag.kind == FlagKind.OFF_TARGET
    assert flag.share == few.mean() and flag.expected == 0.64
    merging = np.array([8, 1])
    assert kinds(routed(trace, few, strides=merging)) == set()


def test_weights_are_saturated_where_they_are_cut_off_at_1(trace):
    kept = usual(trace)
    high = np.where(np.cumsum(kept) > 1, 1.5, 0.4)
    assert kinds(routed(trace, kept, high)) == {FlagKind.SATURATED}
    assert kinds(routed(trace, kept, high, routers=np.array(["mod", "subllm"]))) == set()
    assert kinds(routed(trace, kept, np.where(np.arange(len(kept)) % 2, 1.5, 0.4))) == set()
    assert kinds(routed(trace, kept, high, thresholds=np.array([0.6, 0]))) == set(), "the weights are 0.9"
    assert kinds(routed(trace, kept, high - 1, thresholds=np.array([-0.7, 0]))) == {FlagKind.SATURATED}


def test_dropped_special_tokens_are_named(trace):
    pieces = trace.prompt.pieces.astype("<U20")
    pieces[[0, 4, 5]] = "<|im_start|>", "<eos>", "<b"
    marked = replace(trace, prompt=replace(trace.prompt, pieces=pieces))
    assert np.flatnonzero(special_tokens(marked.prompt)).tolist() == [0, 4]
    (flag,) = [flag for flag in flags(routed(marked, usual(trace))) if flag.level == 1]
    assert (flag.kind, flag.tokens) == (FlagKind.SPECIAL_DROPPED, (0,))
    inside = routed(marked, usual(trace), site_kinds=np.array(["mlp", "level"]), site_blocks=np.array([0, -1]))
    assert kinds(inside) == set()


def test_every_flag_is_said_in_a_sentence(trace, everything):
    pieces = trace.prompt.pieces.astype("<U20")
    pieces[:15] = "<|mark|>"
    marked = replace(trace, prompt=replace(trace.prompt, pieces=pieces))
    few = np.arange(trace.num_tokens) % 8 == 7
    said = [
        flag_in_words(each, flag)
        for each in (routed(marked, everything), routed(marked, few), routed(marked, ~everything))
        for flag in flags(each)
    ]
    assert "Level 1 keeps every token that reaches it." in said
    assert "Level 1 keeps no token." in said
    assert f"Level 1 keeps {few.mean():.0%} of the tokens that reach it; training aimed at 64%." in said
    assert "Level 1 drops special tokens: 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12 and 2 more." in said
