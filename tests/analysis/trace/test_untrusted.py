"""Files from strangers: whatever is in them, they are opened as what they are or refused in one clear line."""

import io
import json
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.figures.terms import stopping_level
from analysis.trace.trace import LONGEST_NOTE
from analysis.trace.untrusted import LARGEST, open_trace

from .test_trace import assert_equal, content, make_trace, saved

NO_TRACE = "This is not a run saved by this app"


def opened(data, most_tokens=100):
    return open_trace(io.BytesIO(data), most_tokens)


def packed(meta, arrays):
    file = io.BytesIO()
    np.savez_compressed(file, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8), **arrays)
    return file.getvalue()


def archive(*entries):
    """A zip file of names and bytes, whatever they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return file.getvalue()


def header(shape, kind="<f4"):
    """The beginning of an array's entry."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_a_saved_trace_is_opened_whole_with_its_note():
    trace = replace(make_trace(), note="look at <b>the</b> $third$ token\nand the next 你")
    found = opened(saved(trace))
    assert_equal(found, trace)
    assert (found.note, found.run, found.digest) == (trace.note, make_trace().run, make_trace().digest)


def test_a_note_that_is_too_long_or_no_text_is_refused():
    with pytest.raises(AnalysisError, match="at most 4,000 characters"):
        replace(make_trace(), note="x" * (LONGEST_NOTE + 1))
    meta, arrays = content(make_trace())
    with pytest.raises(AnalysisError, match="A note is text"):
        opened(packed(meta | {"note": ["x"]}, arrays))


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY", b"not a zip" * 99, archive(), archive(("a", b"b"))])
def test_what_is_no_trace_is_refused(data):
    with pytest.raises(AnalysisError, match=NO_TRACE):
        opened(data)


def test_a_run_of_a_newer_format_is_called_so_and_no_other_file():
    meta, arrays = content(make_trace())
    said = r"Another version of the app saved this run .*trace format 5;.*update"
    with pytest.raises(AnalysisError, match=said) as found:
        opened(packed(meta | {"format": 5}, arrays))
    assert NO_TRACE not in str(found.value)


def test_a_file_that_is_cut_off_or_damaged_is_refused():
    whole = saved(make_trace())
    for length in range(0, len(whole), 97):
        with pytest.raises(AnalysisError):
            opened(whole[:length])


def test_a_file_is_measured_before_it_is_unpacked():
    zeros = header((LARGEST,), "|u1") + bytes(LARGEST)
    bomb = archive(("meta.npy", zeros))
    assert len(bomb) < LARGEST // 500
    with pytest.raises(AnalysisError, match="unpacks to 128 MB; at most 128 MB"):
        opened(bomb)


@pytest.mark.parametrize("shape", [(10**15,), (2**62, 4), (-1,), (0, 10**30), (3,)])
def test_an_array_must_have_the_size_that_it_says(shape):
    with pytest.raises(AnalysisError, match=NO_TRACE):
        opened(archive(("meta.npy", header((2,), "|u1") + b"{}"), ("prompt.token_ids.npy", header(shape) + bytes(8))))


def test_a_prompt_that_is_too_long_is_said_with_its_length():
    with pytest.raises(AnalysisError, match="has 9 tokens; at most 8 are shown here"):
        opened(saved(make_trace(tokens=9)), 8)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("provenance", {"checkpoint": ["x"]}),
        ("provenance", {"checkpoint": None}),
        ("provenance", {"predictor": "yes"}),
        ("provenance", {"dense": "elsewhere"}),
        ("provenance", {"device": "\ud800"}),
        ("provenance", {"more": 1}),
        ("prompt", {"text": "\ud800" * 5}),
        ("agreement", {"reference": "x"}),
        ("continuation", {"text": "x" * (1 << 21)}),
        ("costs", {"subllm": {"seconds": [], "peak_bytes": 1, "cache_bytes": 1}}),
        ("costs", {"subllm": {"seconds": [0], "peak_bytes": 1, "cache_bytes": 1}}),
        ("costs", {"subllm": {"seconds": [float("nan")], "peak_bytes": 1, "cache_bytes": 1}}),
        ("costs", {"subllm": {"seconds": [1], "peak_bytes": "1", "cache_bytes": 1}}),
        ("costs", {"subllm": {"seconds": [1], "peak_bytes": 1, "cache_bytes": -1}}),
        ("costs", {"dense": {"seconds": [1], "peak_bytes": 0, "cache_bytes": 1}}),
        ("costs", {"dense": {"seconds": [1], "peak_bytes": 1, "cache_bytes": 0}}),
        ("provenance", {"dense": ""}),
    ],
)
def test_a_file_that_says_what_no_trace_says_is_refused(part, change):
    meta, arrays = content(make_trace())
    with pytest.raises(AnalysisError, match=NO_TRACE):
        opened(packed(meta | {part: meta[part] | change}, arrays))


def test_a_level_is_reached_by_the_tokens_that_the_level_around_it_keeps_and_by_no_others():
    meta, arrays = content(make_trace(tokens=40))
    for row, value in ((0, False), (1, True), (2, False)):
        other = arrays["routing.reached"].copy()
        other[row] = value
        changed = arrays | {"routing.reached": other, "routing.kept": arrays["routing.kept"] & other}
        with pytest.raises(AnalysisError, match=rf"other tokens reach Level {row + 1} than those that level"):
            opened(packed(meta, changed))


def test_a_token_that_reaches_no_level_at_all_stops_at_the_outermost_one():
    routing = make_trace().routing  # Level 2 is in Level 1
    assert stopping_level(routing, 2, [False, False, False]) == 1


@pytest.mark.parametrize("name", ["meta.npy", "meta"])
def test_the_json_of_a_file_is_small(name):
    meta, arrays = content(make_trace())
    with zipfile.ZipFile(io.BytesIO(packed(meta | {"more": "x" * (4 << 20)}, arrays))) as archived:
        entries = [(name if each == "meta.npy" else each, archived.read(each)) for each in archived.namelist()]
    with pytest.raises(AnalysisError, match="at most 4,194,304 are read"):
        opened(archive(*entries))


def test_nothing_in_a_file_is_executed():
    meta, arrays = content(make_trace())
    arrays["prompt.pieces"] = np.asarray([{}] * 5, dtype=object)
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
    with pytest.raises(AnalysisError, match=NO_TRACE):
        opened(file.getvalue())
