"""What the browser gets: the trace's arrays, with offsets as a browser counts."""

import json
import re

import numpy as np
import pytest

from analysis.figures import ENGLISH
from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace
from app.components.routing_view import Shown, view_data
from app.strings import LANGUAGES, table
from subllm.checkpoints import load_checkpoint


def unpack(data):
    """Header and arrays, as the browser reads them."""
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    arrays = {
        name: np.frombuffer(data[start + offset : start + offset + size], f"<{kind}")
        for name, (kind, offset, size) in header["arrays"].items()
    }
    return header, arrays


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
    header, arrays = unpack(view_data(trace, Shown(), table("en")))
    units = trace.prompt.encode("utf-16-le")
    starts, ends = arrays["starts"], arrays["ends"]
    for index in range(trace.num_tokens):
        shown = units[2 * starts[index] : 2 * ends[index]].decode("utf-16-le")
        assert shown == trace.prompt[trace.starts[index] : trace.ends[index]]
    np.testing.assert_array_equal(arrays["kept"].reshape(2, -1), trace.kept)
    np.testing.assert_array_equal(arrays["score"].reshape(2, -1), trace.scores)
    np.testing.assert_array_equal(arrays["change"].reshape(trace.num_blocks, -1), trace.change)
    for span, kept in zip(header["spans"], trace.kept.sum(1), strict=True):
        assert f"{kept} of" in span["title"]
    assert [(span["first"], span["last"], span["depth"]) for span in header["spans"]] == [(2, 4, 1), (3, 3, 2)]


def test_the_same_trace_makes_the_same_bytes_which_grow_with_tokens_and_blocks_only(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    sizes = {}
    for words in (50, 350):
        prompt = read_prompt("cat " * words, checkpoint.tokenizer, 400)
        trace = record_trace(checkpoint, None, prompt, RunOptions(new_tokens=0))
        sizes[trace.num_tokens] = len(view_data(trace, Shown(), table("en")))
        assert view_data(trace, Shown(), table("en")) == view_data(trace, Shown(), table("en"))
    (few, small), (many, large) = sizes.items()
    blocks = checkpoint.model.config.num_hidden_layers
    assert (large - small) / (many - few) / blocks < 25


def test_events_and_links_that_point_outside_of_the_trace_are_dropped(trace_of_two_levels):
    trace = trace_of_two_levels
    assert Shown.parse({"level": 1, "selected": 3, "colour": "change"}, trace) == Shown(1, 3, 3, "change")
    assert Shown.parse({"level": "1", "selected": "0"}, trace) == Shown(1, 0, 0, "score")
    assert Shown.parse({"selected": 3, "until": 1}, trace).tokens == (1, 2, 3)
    assert Shown().tokens == ()
    for value in (None, [], "x", {"level": 2, "selected": 10**9, "colour": "<b>"}, {"level": "x", "selected": None}):
        assert Shown.parse(value, trace) == Shown(0, -1, -1, "score")


def test_every_string_is_there_in_every_language_with_the_same_placeholders():
    tables = [table(language) for language in LANGUAGES]
    for key in tables[0]:
        found = {frozenset(re.findall(r"{(\w+)}", words[key])) for words in tables}
        assert len(found) == 1, key
        assert all(words[key].strip() for words in tables), key
    assert {key: tables[0][key] for key in ENGLISH} == ENGLISH
