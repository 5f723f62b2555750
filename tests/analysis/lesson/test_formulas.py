"""Every live figure of the lesson, worked out again from the trace in another way."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.lesson.formulas import FORMULAS
from analysis.lesson.needs import lacking, level_for
from analysis.lesson.place import WINDOW, Place, inwards, pair, step, window
from analysis.trace.parts import Agreement, Cost, Costs
from tests.analysis.trace.test_trace import make_trace

LEVEL = 1


@pytest.fixture(scope="module")
def run():
    """A run of no model, with two nested levels and one beside them, all of which keep and drop some tokens."""
    for seed in range(100):
        trace = make_trace(tokens=30, seed=seed)
        if all(0 < trace.routing.kept[row].sum() < trace.routing.reached[row].sum() for row in range(3)):
            return trace
    raise AssertionError


def values(name, trace, level=LEVEL, tokens=()):
    return FORMULAS[name].figures(Place(trace, level, tokens)).values


def tokens_of(trace, what, level=LEVEL):
    """Indices of tokens, one by one."""
    return [token for token in range(trace.num_tokens) if getattr(trace.routing, what)[level - 1, token]]


def test_each_formula_has_the_values_that_it_promises(run):
    for name, formula in FORMULAS.items():
        assert values(name, run).keys() == formula.names, name


def test_editor_counts_what_the_level_drops_of_the_first_tokens_that_reach_it(run):
    found = values("editor", run)
    reached = tokens_of(run, "reached")[:WINDOW]
    dropped = [token for token in reached if not run.routing.kept[0, token]]
    assert (found["window"], found["dropped"]) == (len(reached), len(dropped))
    assert found["share"] == len(dropped) / len(reached)


@pytest.mark.parametrize("first", [20, 79, 80, 130, 199])
@pytest.mark.parametrize("drops", [True, False])
def test_what_is_to_be_marked_has_kept_and_dropped_tokens(first, drops):
    trace = make_trace("T(T)T", tokens=200)
    kept = np.full((1, 200), drops)
    kept[0, first] = not drops  # the only token of another fate
    place = Place(replace(trace, routing=replace(trace.routing, kept=kept, reached=np.ones_like(kept))), LEVEL)
    near = window(place)
    assert near.sum() == WINDOW and near[first]
    found = FORMULAS["editor"].figures(place).values
    assert (found["first"], found["last"]) == (near.nonzero()[0][0], near.nonzero()[0][-1])
    assert found["dropped"] == (1 if drops else WINDOW - 1)
    assert near[:WINDOW].all() == (first < WINDOW)


@pytest.mark.parametrize("bypassed", [True, False])
def test_the_law_of_a_level_has_a_bypass_scale_only_where_the_level_has_one(run, bypassed):
    scale = run.routing.bypass_scale if bypassed else np.full_like(run.routing.bypass_scale, np.nan)
    trace = replace(run, routing=replace(run.routing, bypass_scale=scale))
    figures = FORMULAS["bypass"].figures(Place(trace, LEVEL))
    assert (r"\beta" in figures.law) == (r"\beta" in figures.latex) == bypassed
    assert "f(x)" in figures.law


def test_grid_counts_the_cells_of_the_map(run):
    found = values("grid", run)
    kept = {0: run.num_tokens} | {level: len(tokens_of(run, "kept", level)) for level in run.routing.levels}
    done = sum(kept[level] for level in run.routing.block_levels.tolist())
    cells = run.num_tokens * len(run.routing.block_levels)
    assert (found["cells"], found["done"], found["saved"]) == (cells, done, cells - done)
    assert found["work"] == pytest.approx(done / cells)


def test_scores_and_ranks_are_those_of_the_two_tokens(run):
    one, two = pair(Place(run, LEVEL))
    found = values("score", run)
    ranked = sorted(tokens_of(run, "reached"), key=lambda token: -run.routing.scores[0, token])
    for name, token in (("one", one), ("two", two)):
        assert found[name] == f"{str(run.prompt.pieces[token])!r} ({token})"
        assert found[f"{name}_score"] == run.routing.scores[0, token]
        assert found[f"{name}_rank"] == 1 + ranked.index(token)
    assert found["reached"] == len(ranked)
    assert found["norm"] == run.routing.stream_norm[0, one]


def test_the_two_tokens_are_the_ends_of_what_is_selected(run):
    assert pair(Place(run, LEVEL, tuple(range(2, 9)))) == (2, 8)
    assert values("score", run, tokens=(4, 5))["two"].endswith("(5)")


def test_threshold_says_what_would_be_left_above_it(run):
    place = Place(run, LEVEL, tuple(tokens_of(run, "kept")[:1]))
    found = FORMULAS["threshold"].figures(place).values
    token, limit = place.tokens[0], run.routing.thresholds[0]
    assert found["token_score"] == run.routing.scores[0, token]
    assert found["weight"] == run.routing.weights[0, token]
    assert found["moved"] == pytest.approx(limit + found["step"])
    scores = [run.routing.scores[0, other] for other in tokens_of(run, "reached")]
    assert found["left"] == sum(score > limit + found["step"] for score in scores)
    assert (found["kept"], found["reached"]) == (len(tokens_of(run, "kept")), len(scores))
    assert found["retention"] == pytest.approx(found["kept"] / found["reached"])
    assert found["nominal"] == run.routing.retention_ratios[0]


@pytest.mark.parametrize("size", [1e-4, 0.02, 1.0, 37.0, 5000.0])
def test_the_move_of_a_threshold_fits_the_scores(run, size):
    routing = run.routing
    scores = np.where(routing.kept, size * (1 + np.arange(30)), routing.scores)
    trace = replace(run, routing=replace(routing, scores=scores, thresholds=np.zeros(3, dtype=np.float32)))
    kept = scores[0][routing.kept[0]]
    lost = (kept <= step(Place(trace, LEVEL))).mean()
    assert 0 < lost < 0.5


def test_nesting_multiplies_the_shares_on_the_way_inwards(run):
    found = values("nesting", run)
    assert inwards(run.routing) == [1, 2]
    inner = [token for token in tokens_of(run, "kept", 2) if run.routing.kept[0, token]]
    assert (found["inner"], found["innermost"], found["levels"]) == (len(inner), 2, 2)
    assert found["share"] == len(inner) / run.num_tokens
    assert found["nominal"] == pytest.approx(0.7 * 0.7)


def test_inside_counts_the_kept_tokens_up_to_the_one_that_looks(run):
    found = FORMULAS["inside"].figures(Place(run, LEVEL))
    viewer, viewed = found.tokens
    inside = [token for token in tokens_of(run, "kept") if token <= viewer]
    assert inside[-1] == viewer and viewed < viewer
    assert (found.values["inside"], found.values["slot"]) == (len(inside), inside.index(viewer))
    assert (found.values["place"], found.values["before"]) == (viewer, viewer + 1)


def test_bypass_adds_what_was_recorded_and_nothing_to_a_dropped_token(run):
    kept, dropped = tokens_of(run, "kept")[1], tokens_of(run, "dropped")[1]
    span = tuple(range(min(kept, dropped), max(kept, dropped) + 1))
    found = FORMULAS["bypass"].figures(Place(run, LEVEL, span))
    one, two = found.tokens
    assert run.routing.kept[0, one] and not run.routing.kept[0, two]
    expected = {
        "weight": run.routing.weights[0, one],
        "scale": run.routing.bypass_scale[0].mean(),
        "low": run.routing.bypass_scale[0].min(),
        "high": run.routing.bypass_scale[0].max(),
        "stream": run.routing.stream_norm[0, one],
        "change": run.routing.difference_norm[0, one],
        "added": run.routing.contribution_norm[0, one],
        "two_stream": run.routing.stream_norm[0, two],
        "two_added": 0,
    }
    assert {name: found.values[name] for name in expected} == pytest.approx(expected)


def test_cost_compares_medians_and_hopes_for_the_innermost_share(run):
    agreement = Agreement("twin", run.agreement.surprisal, np.full(30, 0.25), np.arange(30) < 12)
    costs = Costs(Cost((0.1, 0.2, 0.9), 1000, 1 << 20), Cost((0.3, 0.3), 2000, 1 << 21))
    found = values("cost", replace(run, agreement=agreement, costs=costs))
    inner = min(len(tokens_of(run, "kept", level)) for level in run.routing.levels) / 30
    expected = {"own": 200, "dense": 300, "speed": 1.5, "cache": 1, "dense_cache": 2, "cache_share": 0.5}
    expected |= {"agreement": 0.4, "divergence": 0.25, "inner": inner, "hoped": 1 / inner}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["work"] == values("grid", run)["work"]


def test_the_next_token_and_the_new_ones_are_those_of_the_run(run):
    found = values("broken", run, level=3)
    assert (found["answer"], found["chance"]) == ("'a'", 0.5)
    assert (found["new"], found["new_tokens"], found["new_kept"]) == ("'a'", 2, run.continuation.kept[2].sum())


def test_what_a_run_lacks_has_a_sentence_of_its_own(run):
    routing = run.routing

    def reason(need, level=LEVEL, trace=run, **changed):
        trace = replace(trace, routing=replace(trace.routing, **changed)) if changed else trace
        return lacking(Place(trace, level), (need,))

    assert [reason(need) for need in ("drops", "blocks", "scores", "nesting", "costs", "continuation")] == [""] * 6
    assert reason("scores", level=2) == "no_scores"
    assert reason("drops", strides=np.asarray([2, 2, 2])) == "merges"
    assert reason("drops", site_kinds=np.full(3, "mlp"), site_blocks=np.zeros(3, dtype=int)) == "heavy"
    assert reason("drops", kept=routing.reached) == "keeps_all"
    assert reason("drops", kept=np.zeros_like(routing.kept)) == "keeps_none"
    assert reason("nesting", parents=np.zeros(3, dtype=int)) == "no_nesting"
    assert reason("costs", trace=make_trace(parts=())) == "no_costs"
    assert reason("continuation", trace=make_trace(parts=())) == "no_continuation"
    assert reason("blocks", block_levels=np.zeros_like(routing.block_levels)) == "no_blocks"
    for edits, patch, expected in ((("drop 3@1",), "", "has_edits"), ((), "state", "has_edits"), ((), "", "")):
        where = replace(run.provenance, edits=edits, patch=patch)
        assert reason("unedited", trace=replace(run, provenance=where)) == expected
    assert reason("levels", trace=make_trace("TT")) == reason("costs", trace=make_trace("TT")) == "no_levels"


def test_an_exercise_goes_to_the_first_level_where_it_is_possible(run):
    assert level_for(run, ("scores",), 3) == 3
    assert level_for(run, ("scores",), 2) == 1
    assert level_for(run, ("costs",), 2) == 2
