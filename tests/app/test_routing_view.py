"""What the browser gets: the trace's arrays, with offsets as a browser counts."""

import base64

import numpy as np

from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace
from app.components.routing_view import view_data
from subllm.checkpoints import load_checkpoint


def unpack(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def test_offsets_cut_the_text_in_utf16_as_the_tokenizer_did_in_characters(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    prompt = read_prompt("a 🦙 <b> 你 cat", checkpoint.tokenizer, 100)
    trace = record_trace(checkpoint, None, prompt, RunOptions(new_tokens=0))
    data = view_data(trace)
    units = trace.prompt.encode("utf-16-le")
    starts, ends = unpack(data["starts"], np.uint32), unpack(data["ends"], np.uint32)
    for index in range(trace.num_tokens):
        shown = units[2 * starts[index] : 2 * ends[index]].decode("utf-16-le")
        assert shown == trace.prompt[trace.starts[index] : trace.ends[index]]
    np.testing.assert_array_equal(unpack(data["kept"], np.uint8).reshape(2, -1), trace.kept)
    np.testing.assert_array_equal(unpack(data["scores"], np.float32).reshape(2, -1), trace.scores)
    assert [span["kept"] for span in data["spans"]] == trace.kept.sum(1).tolist()
    assert [(span["first"], span["last"], span["depth"]) for span in data["spans"]] == [(2, 4, 1), (3, 3, 2)]
