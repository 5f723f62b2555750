"""Two traces compared, on traces that differ in what a test changed."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.commands import diff
from analysis.trace.difference import differences
from analysis.trace.files import PARTS
from tests.conftest import run_command


def names(*arguments, **options):
    return [difference.what for difference in differences(*arguments, **options)]


def moved(trace, by):
    """The trace with all scores moved by a number."""
    return replace(trace, routing=replace(trace.routing, scores=trace.routing.scores + np.float32(by)))


def test_a_trace_has_no_difference_from_itself_with_all_that_is_not_measured(trace):
    assert differences(trace, trace) == []
    assert names(trace, replace(trace, costs=None, provenance=replace(trace.provenance, device="elsewhere"))) == []


def test_numbers_agree_within_the_tolerance_and_decisions_only_if_equal(trace):
    near = moved(trace, 1e-4)
    assert names(trace, near) == ["routing.scores"]
    assert names(trace, near, 1e-3) == []
    kept = trace.routing.kept.copy()
    last = np.flatnonzero(kept[1])[-1]
    kept[1, last] = False
    (found,) = differences(trace, replace(trace, routing=replace(trace.routing, kept=kept)), 100.0)
    assert str(found) == f"routing.kept: 1 of {kept.size} entries differ, the first at [1, {last}]: True and False"


def test_a_large_number_may_be_apart_by_a_share_of_it(trace):
    larger = replace(trace.routing, stream_norm=trace.routing.stream_norm * np.float32(1000))
    off = replace(larger, stream_norm=larger.stream_norm * np.float32(1.001))
    first, second = (replace(trace, routing=each) for each in (larger, off))
    assert names(first, second, 0.0005) == ["routing.stream_norm"]
    assert names(first, second, 0.002) == []


def test_a_number_is_not_the_absence_of_one(trace):
    scores = trace.routing.scores.copy()
    scores[0, 2] = np.nan
    (found,) = differences(trace, replace(trace, routing=replace(trace.routing, scores=scores)), 100.0)
    assert "1 of" in found.said and found.said.endswith("and nan")


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("prompt", "routing")])
def test_a_part_that_only_one_has_is_a_difference_unless_it_is_ignored(trace, name):
    less = replace(trace, **{name: None})
    assert [str(each) for each in differences(trace, less)] == [f"{name}: only the first has it"]
    assert names(less, trace, ignored=[name]) == []


def test_other_tokens_are_the_only_difference(trace):
    ids = trace.prompt.token_ids.copy()
    ids[3] += 1
    (found,) = differences(moved(trace, 1), replace(trace, prompt=replace(trace.prompt, token_ids=ids)))
    assert found.what == "prompt" and "the same up to token 3" in found.said


def test_a_tolerance_below_0_and_an_unknown_part_are_refused(trace):
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(AnalysisError, match="0 or more"):
            differences(trace, trace, tolerance)
    with pytest.raises(AnalysisError, match="there are prompt, routing"):
        differences(trace, trace, ignored=["speed"])


def test_the_command_says_by_its_exit_code_whether_traces_agree(trace, tmp_path):
    trace.save(tmp_path / "first.npz")
    moved(trace, 1e-4).save(tmp_path / "second.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    both = tmp_path / "first.npz", tmp_path / "second.npz"
    same = run_command(diff.main, *both, "--tolerance", 0.001)
    assert same.returncode == 0 and same.stdout.startswith("The traces agree: ")
    other = run_command(diff.main, *both)
    assert other.returncode == 1 and other.stdout.startswith("routing.scores: ") and not other.stderr
    assert run_command(diff.main, *both, "--ignore", "routing").returncode == 0
    for path in ("broken.npz", "missing.npz"):
        refused = run_command(diff.main, both[0], tmp_path / path)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
