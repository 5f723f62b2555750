"""What the browser gets: the trace's arrays, with offsets as a browser counts."""

import base64
import re

import numpy as np
import pytest

from analysis.figures import ENGLISH
from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace
from app.components.routing_view import Shown, view_data
from app.strings import LANGUAGES, table
from subllm.checkpoints import load_checkpoint


def unpack(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


@pytest.fixture(scope="module")
def trace_of_two_levels(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    return record_trace(
        checkpoint, None, read_prompt("the cat sat on the mat", checkpoint.tokenizer, 100), RunOptions(0)
    )


def test_offsets_cut_the_text_in_utf16_as_the_tokenizer_did_in_characters(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    prompt = read_prompt("a 🦙 <b> 你 cat", checkpoint.tokenizer, 100)
    trace = record_trace(checkpoint, None, prompt, RunOptions(new_tokens=0))
    data = view_data(trace, Shown(), table("en"))
    units = trace.prompt.encode("utf-16-le")
    starts, ends = unpack(data["starts"], np.uint32), unpack(data["ends"], np.uint32)
    for index in range(trace.num_tokens):
        shown = units[2 * starts[index] : 2 * ends[index]].decode("utf-16-le")
        assert shown == trace.prompt[trace.starts[index] : trace.ends[index]]
    (channel,) = [entry for entry in data["channels"] if entry["key"] == "score"]
    np.testing.assert_array_equal(unpack(data["kept"], np.uint8).reshape(2, -1), trace.kept)
    np.testing.assert_array_equal(unpack(channel["values"], np.float32).reshape(2, -1), trace.scores)
    for span, kept in zip(data["spans"], trace.kept.sum(1), strict=True):
        assert f"{kept} of" in span["title"]
    assert [(span["first"], span["last"], span["depth"]) for span in data["spans"]] == [(2, 4, 1), (3, 3, 2)]


def test_events_and_links_that_point_outside_of_the_trace_are_dropped(trace_of_two_levels):
    trace = trace_of_two_levels
    assert Shown.parse({"level": 1, "selected": 3, "colour": "change"}, trace) == Shown(1, 3, "change")
    assert Shown.parse({"level": "1", "selected": "0"}, trace) == Shown(1, 0, "score")
    for value in (None, [], "x", {"level": 2, "selected": 10**9, "colour": "<b>"}, {"level": "x", "selected": None}):
        assert Shown.parse(value, trace) == Shown(0, -1, "score")


def test_every_string_is_there_in_every_language_with_the_same_placeholders():
    tables = [table(language) for language in LANGUAGES]
    for key in tables[0]:
        found = {frozenset(re.findall(r"{(\w+)}", words[key])) for words in tables}
        assert len(found) == 1, key
        assert all(words[key].strip() for words in tables), key
    assert {key: tables[0][key] for key in ENGLISH} == ENGLISH
