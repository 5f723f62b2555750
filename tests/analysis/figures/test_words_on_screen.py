"""Small texts that several views share: quoted texts, devices, and how often a number was measured."""

from ast import literal_eval
from dataclasses import replace

import pytest

from analysis.figures import summary
from analysis.figures.quoted import quoted
from analysis.figures.strings import table
from analysis.figures.terms import device_words
from analysis.trace.parts import Cost, Costs

FAMILY = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"


@pytest.mark.parametrize("text", ["a 'word'\n", "\u202eabc", "\\u200d", "\\\u200d"])
def test_a_quoted_text_can_be_read_back_and_breaks_no_line(text):
    assert literal_eval(quoted(text)) == text
    assert len(quoted(text).splitlines()) == 1 and "\u202e" not in quoted(text)


def test_a_quoted_family_stays_one_picture():
    assert quoted(FAMILY) == f"'{FAMILY}'"


def test_a_processor_is_named_in_the_language_of_the_page():
    assert device_words("CPU, 2 threads", table("zh")) == "CPU，2 个线程"
    for device in ("CPU, 1 thread", "CPU, 16 threads", "NVIDIA H100 80GB HBM3"):
        assert device_words(device, table("en")) == device


@pytest.mark.parametrize(("passes", "note"), [(1, "speed-up, timed once"), (3, "speed-up, measured")])
def test_the_headline_says_when_its_speed_up_is_of_one_pass(trace, passes, note):
    cost = Cost((0.5,) * passes, 1, 1)
    assert [each.note for each in summary.headline(replace(trace, costs=Costs(cost, cost)), table("en"))][-1] == note


def test_one_timed_pass_is_no_median_and_has_no_range(trace):
    for passes, label, times in ((1, "one pass", "SUBLLM 500.0 ms"), (2, "median", "SUBLLM 500.0 – 700.0 ms")):
        cost = Cost((0.5, 0.7)[:passes], 1, 1)
        timed = replace(trace, costs=Costs(cost, cost))
        assert label in summary.cost_table(timed, table("en")).index[0]
        assert times in summary.measured(timed, table("en"))
