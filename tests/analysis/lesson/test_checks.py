"""Questions are answered by the run, and judged on it."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.debug.edits import parse_edits
from analysis.debug.intervene import intervene, run_unedited
from analysis.lesson.checks import CHECKS, Kind
from analysis.lesson.place import Place, doubtful, key_token, pair, step, viewer_and_viewed
from analysis.trace.parts import Cost, Costs
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.load import load_checkpoint
from tests.analysis.conftest import TEXT
from tests.analysis.trace.test_trace import make_trace


@pytest.fixture(scope="module")
def unedited(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    return run_unedited(checkpoint, read_prompt(TEXT, checkpoint.tokenizer, 512))


@pytest.fixture(scope="module")
def place(unedited):
    return Place(unedited.trace)


def judged(name, place, given):
    check = CHECKS[name]
    return check.judge(check.task(place), given)


def expected(name, place):
    return CHECKS[name].task(place).expected


def test_marks_are_counted_beside_what_chance_gives(place):
    task = CHECKS["dropped"].task(place)
    dropped = frozenset(np.flatnonzero(~place.trace.routing.kept[0]).tolist())
    assert (task.kind, task.expected, task.among) == (Kind.MARKS, dropped, tuple(range(place.trace.num_tokens)))
    perfect = judged("dropped", place, dropped)
    assert perfect.right and perfect.values["hits"] == perfect.values["marked"] == len(dropped)
    for lucky in dropped:
        assert not judged("dropped", place, frozenset({lucky})).right, "a single mark is luck"
    everything = judged("dropped", place, frozenset(task.among))
    assert not everything.right
    assert everything.values["by_chance"] == pytest.approx(everything.values["hits"])


@pytest.mark.parametrize(("off", "right"), [(0, True), (0.09, True), (-0.09, True), (0.2, False)])
def test_a_number_counts_within_a_tenth(place, off, right):
    saved = float((~place.trace.routing.processed).sum())
    assert judged("saved", place, saved * (1 + off)).right == right


@pytest.mark.parametrize(("off", "right"), [(0, True), (0.05, True), (-0.04, True), (0.06, False)])
def test_a_share_counts_within_five_points(place, off, right):
    share = place.trace.routing.kept[1].mean()
    assert judged("innermost", place, float(share) + off).right == right


def test_the_higher_score_is_the_one_in_the_trace(place):
    tokens = pair(place)
    scores = place.trace.routing.scores[0, list(tokens)]
    assert judged("higher", place, "one").right == (scores[0] > scores[1])
    assert judged("higher", place, "two").right != judged("higher", place, "one").right


@pytest.mark.parametrize("level", [1, 2])
def test_who_survives_a_moved_threshold_is_what_the_edited_run_keeps(unedited, level):
    place = Place(unedited.trace, level)
    edited = intervene(unedited, parse_edits(f"threshold {step(place)}@{level}")).trace
    assert (~edited.routing.kept[level - 1] & place.kept).any(), "the move drops something"
    for token in np.flatnonzero(place.kept).tolist():
        chosen = replace(place, tokens=(token,))
        assert doubtful(chosen) == token
        assert expected("survives", chosen) == ("yes" if edited.routing.kept[level - 1, token] else "no")


def test_a_token_sees_another_one_if_both_are_inside_and_it_comes_later(place):
    kept, dropped = (np.flatnonzero(each).tolist() for each in (place.kept, place.dropped))
    last = kept[-1]
    before = next(token for token in dropped if token < last)
    assert expected("sees", replace(place, tokens=tuple(range(kept[0], last + 1)))) == "yes"
    assert expected("sees", replace(place, tokens=tuple(range(before, last + 1)))) == "no"
    viewer, viewed = viewer_and_viewed(place)
    assert expected("sees", place) == ("yes" if place.kept[viewed] else "no")
    assert viewed < viewer


def test_a_dropped_token_carries_out_what_it_carried_in(place):
    assert expected("carries", place) == "same"


@pytest.mark.parametrize(("seconds", "answer"), [(0.1, "none"), (0.08, "some"), (0.01, "hoped")])
def test_faster_is_what_was_measured(seconds, answer):
    trace = make_trace(tokens=30, seed=3)
    costs = Costs(Cost((seconds,), 1, 1), Cost((0.1,), 1, 1))
    place = Place(replace(trace, costs=costs))
    assert expected("faster", place) == answer


def test_which_level_mattered_is_known_once_it_is_measured(place):
    token = key_token(place)
    levels = [level for level in place.trace.routing.levels if place.trace.routing.kept[level - 1, token]]
    assert expected("mattered", place) is None
    assert CHECKS["mattered"].task(place).options == tuple(map(str, levels))
    done = replace(place, tokens=(token,), measured={0: 0.5} | {level: 0.5 - 0.1 * level for level in levels})
    assert expected("mattered", done) == str(levels[-1])
    assert expected("mattered", replace(done, measured={**done.measured, levels[0]: 0.9})) == str(levels[0])


def test_what_was_measured_stays_what_it_was_whatever_the_run_keeps(place):
    """Another device may decide about the token in another way."""
    token = int(place.dropped.nonzero()[0][0])
    done = replace(place, tokens=(token,), measured={0: 0.5, 1: 0.9, 2: 0.25})
    assert key_token(done) == token
    task = CHECKS["mattered"].task(done)
    assert (task.options, task.expected) == (("1", "2"), "1"), "from 50% to 90% is more than from 50% to 25%"
