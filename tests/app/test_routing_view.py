"""What the browser gets: the trace's arrays as recorded, with offsets as a browser counts."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.debug.edits import parse_edits
from analysis.debug.intervene import intervene, run_unedited
from analysis.figures.modules import join
from analysis.figures.routing_view import element
from analysis.figures.routing_view.data import Shown, Spotlight, view_data
from analysis.figures.words import ENGLISH
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from app.components.routing_view import _marked
from app.strings import table
from subllm.checkpoints.load import load_checkpoint
from tests.analysis.trace.test_trace import make_trace

NODE = shutil.which("node")
EDITS = [
    "",
    "drop 1@1",
    "keep 0-2@*;threshold 0.4@2",
    "threshold -0.5@1",
    "retention 0.5@2;drop 3@1",
    "bypass 0@1",
    "dense@*",
    "dense@2;bypass 0.5@2",
]


def unpack(data):
    """Header and arrays, as the browser reads them."""
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    arrays = {
        name: np.frombuffer(data[start + offset : start + offset + size], f"<{kind}")
        for name, (kind, offset, size) in header["arrays"].items()
    }
    return header, arrays


def send(trace, shown=None, language="en"):
    return view_data(trace, shown or Shown(), table(language))


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def unedited(checkpoint):
    return run_unedited(checkpoint, read_prompt("the cat sat on the mat and then", checkpoint.tokenizer, 100))


def assert_sent(trace):
    """Every array of the payload is the trace's."""
    header, arrays = unpack(send(trace))
    routing = trace.routing
    sent = {
        "ids": trace.prompt.token_ids, "reached": routing.reached, "kept": routing.kept, "edited": routing.edited,
        "weight": routing.weights, "bypass": routing.contribution_share,
    }  # fmt: skip
    if not np.isnan(routing.thresholds).all():
        sent["score"] = routing.scores
    if trace.blocks is not None:
        sent["change"] = trace.blocks.change
        if trace.blocks.confidence is not None:
            sent["confidence"] = trace.blocks.confidence
    if trace.likelihood is not None:
        sent["surprisal"] = trace.likelihood.surprisal
    if trace.agreement is not None:
        sent["divergence"] = trace.agreement.divergence
    assert arrays.keys() == sent.keys() | {"starts", "ends"}
    assert {channel["key"] for channel in header["channels"]} == arrays.keys() - {
        "ids", "starts", "ends", "reached", "edited",
    }  # fmt: skip
    for name, expected in sent.items():
        np.testing.assert_array_equal(arrays[name].reshape(expected.shape), expected.astype(arrays[name].dtype), name)
    assert header["blocks"] == routing.block_levels.tolist()
    assert [level["level"] for level in header["levels"]] == [*routing.levels]
    assert [level["parent"] for level in header["levels"]] == routing.parents.tolist()
    assert [level["router"] for level in header["levels"]] == routing.routers.tolist()
    thresholds = [np.nan if level["threshold"] is None else level["threshold"] for level in header["levels"]]
    np.testing.assert_array_equal(thresholds, routing.thresholds)
    return header


@pytest.mark.parametrize("edits", EDITS)
def test_the_payload_of_an_edited_run_is_its_trace(unedited, edits):
    header = assert_sent(intervene(unedited, parse_edits(edits)).trace)
    whole = {"threshold", "retention", "bypass", "dense"}
    for level in header["levels"]:
        own = [edit for edit in parse_edits(edits) if edit.kind in whole and edit.applies(level["level"])]
        assert level["edited"] == bool(own)
        assert level["title"].endswith(" (edited)") == bool(own)


@pytest.mark.parametrize("structure", ["TT", "T(T)T", "T(T(T)T)(T)"])
@pytest.mark.parametrize("parts", [(), ("blocks",), ("likelihood", "agreement"), ("blocks", "predictions", "costs")])
def test_the_payload_has_the_parts_that_were_measured_and_no_others(structure, parts):
    header = assert_sent(make_trace(structure, parts=parts))
    assert Shown.colours(make_trace(structure, parts=parts)) == [channel["key"] for channel in header["channels"]]
    assert header["channels"][0]["rows"] == "levels"


def test_levels_say_which_blocks_lie_in_them():
    header, _ = unpack(send(make_trace("T(T(T)T)(T)")))
    assert [(level["first"], level["last"], level["depth"]) for level in header["levels"]] == [
        (1, 3, 1), (2, 2, 2), (4, 4, 1),
    ]  # fmt: skip


def test_what_the_divergence_is_from_is_said():
    trace = make_trace()
    for reference, label in (("twin", "from dense"), ("untouched", "from the unedited run")):
        header, _ = unpack(send(replace(trace, agreement=replace(trace.agreement, reference=reference))))
        assert label in next(each["label"] for each in header["channels"] if each["key"] == "divergence")


def test_any_changed_array_reaches_the_screen_and_edits_leave_the_view_where_it_is(unedited):
    versions = {}
    for edits in EDITS:
        trace = intervene(unedited, parse_edits(edits)).trace
        header, _ = unpack(send(trace))
        assert header["id"] == unedited.trace.subject
        versions[header["version"]] = edits
    assert [*versions.values()] == EDITS
    trace = make_trace()
    contribution = trace.routing.contribution_norm * np.float32(0.5)
    other = replace(trace, routing=replace(trace.routing, contribution_norm=contribution))
    assert unpack(send(trace))[0]["version"] != unpack(send(other))[0]["version"]
    assert unpack(send(trace))[0]["version"] != unpack(send(trace, language="zh"))[0]["version"]
    another = replace(trace, prompt=replace(trace.prompt, token_ids=trace.prompt.token_ids + 1))
    assert unpack(send(trace))[0]["id"] != unpack(send(another))[0]["id"]


def test_offsets_cut_the_text_in_utf16_as_the_tokenizer_did_in_characters(checkpoint):
    prompt = read_prompt("a 🦙 <b> 你 cat", checkpoint.tokenizer, 100)
    trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=0))
    header, arrays = unpack(send(trace))
    units = prompt.text.encode("utf-16-le")
    starts, ends = arrays["starts"], arrays["ends"]
    for index in range(trace.num_tokens):
        shown = units[2 * starts[index] : 2 * ends[index]].decode("utf-16-le")
        assert shown == prompt.text[prompt.starts[index] : prompt.ends[index]]
    for level, kept in zip(header["levels"], trace.routing.kept.sum(1), strict=True):
        assert f"{kept} of" in level["title"]


def test_the_same_trace_makes_the_same_bytes_which_grow_with_tokens_and_blocks_only(checkpoint):
    sizes = {}
    for words in (50, 350):
        prompt = read_prompt("cat " * words, checkpoint.tokenizer, 400)
        trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=0))
        sizes[trace.num_tokens] = len(send(trace))
        assert send(trace) == send(trace)
    (few, small), (many, large) = sizes.items()
    blocks = checkpoint.model.config.num_hidden_layers
    assert (large - small) / (many - few) / blocks < 25


def test_events_and_links_that_point_outside_of_the_trace_are_dropped():
    trace = make_trace()
    assert Shown.parse({"level": 3, "selected": 3, "colour": "change"}, trace) == Shown(3, 3, 3, "change")
    assert Shown.parse({"level": "2", "selected": "0"}, trace) == Shown(2, 0, 0, "score")
    assert Shown.parse({"level": 2.0, "selected": 4.0, "until": None}, trace) == Shown(2, 4, 4, "score")
    assert Shown.parse({"selected": 3, "until": 1}, trace).tokens == (1, 2, 3)
    assert Shown.parse({"until": 1}, trace) == Shown()
    assert Shown().tokens == ()
    assert Shown(selected=2).tokens == (2,)
    for number in (
        0,
        4,
        -1,
        "-1",
        "9" * 5000,
        "x",
        "",
        "²",
        True,
        None,
        [],
        {},
        1.5,
        float("nan"),
        float("inf"),
        10**400,
    ):
        assert Shown.parse({"level": number}, trace) == Shown()
    for number in (5, -1, "-1", "9" * 5000, "1_0", True, None, [3], 1.5, float("nan"), 10**400):
        assert Shown.parse({"selected": number, "until": 1}, trace) == Shown()
    for value in (None, [], "x", 3, {"colour": "<b>"}, {"colour": ["score"]}, {"colour": None}, {1: 2}):
        assert Shown.parse(value, trace) == Shown()
    for shown in (Shown(2, 1, 4, "weight"), Shown()):
        assert Shown.parse(vars(shown), trace) == shown
        assert Shown.parse(json.loads(json.dumps(vars(shown))), trace) == shown


def test_a_trace_without_scores_begins_with_another_colour():
    trace = make_trace("T(T)T")
    unknown = np.full_like(trace.routing.scores, np.nan)
    routing = replace(trace.routing, scores=unknown, thresholds=unknown[:, 0], routers=np.asarray(["even"]))
    trace = replace(trace, routing=routing)
    assert_sent(trace)
    assert Shown.parse({"colour": "score"}, trace).colour == "weight"
    assert Shown.parse({}, make_trace("TT")).colour == "weight"


READ = """
const data = new RoutingData(new Uint8Array(require("fs").readFileSync(0)));
const tokens = [...Array(data.tokens).keys()];
console.log(JSON.stringify({
  states: data.levels.map(({ level }) => tokens.map((token) => data.state(level, token))),
  edited: data.levels.map(({ level }) => tokens.map((token) => data.isEdited(level, token))),
  processed: data.blocks.map((_, block) => tokens.map((token) => data.processed(block, token))),
  reached: data.levels.map(({ level }) => data.countReached(level)),
  ranks: data.levels.map(
    ({ level, threshold }) => threshold === null ? null : tokens.map((token) => data.rank(level, token))),
  weights: data.levels.map(({ level }) => [...data.row(data.channel("weight"), level)]),
  changes: data.blocks.map((_, block) => [...data.row(data.channel("change"), block)]),
  bins: data.levels.map(({ level }) => [...data.bins(data.channel("weight"), level)]),
  pieces: tokens.map((token) => data.piece(token)),
}));
"""


@pytest.mark.skipif(
    NODE is None, reason="Node.js is not installed: what the browser makes of the payload is not checked"
)
@pytest.mark.parametrize("structure", ["TT", "T(T)T", "T(T(T)T)(T)"])
def test_the_browser_reads_states_weights_and_edits_out_of_the_payload_as_recorded(structure):
    trace = make_trace(structure, tokens=8)
    model = join(Path(element.__file__).parent / "model.js")
    done = subprocess.run([NODE, "-e", model + READ], input=send(trace), capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    found, routing = json.loads(done.stdout), trace.routing
    states = np.where(routing.kept, "kept", np.where(routing.reached, "dropped", "absent"))
    assert found["states"] == states.tolist()
    assert found["edited"] == routing.edited.tolist()
    assert found["processed"] == routing.processed.tolist()
    assert found["reached"] == routing.reached.sum(1).tolist()
    assert found["weights"] == routing.weights.tolist()
    assert found["pieces"] == trace.prompt.pieces.tolist()
    changes = np.asarray(found["changes"], dtype=np.float16)  # NaN is null in JSON
    np.testing.assert_array_equal(changes, trace.blocks.change)
    for row, level in enumerate(routing.levels):
        if not routing.scores_tokens(level):
            assert found["ranks"][row] is None
            continue
        scores = routing.scores_of(level).astype(np.float32)
        assert found["ranks"][row] == [1 + int((scores > score).sum()) for score in scores]
        kept = routing.kept[row]
        order = np.argsort(routing.weights[row][kept])
        assert (np.diff(np.asarray(found["bins"][row])[kept][order]) >= 0).all(), "darker with higher weights"


def test_figures_outside_of_the_app_say_in_english_what_the_app_does():
    words = table("en")
    assert {key: words[key] for key in ENGLISH} == ENGLISH


def test_what_a_lesson_lights_and_hides_reaches_the_browser_and_nothing_else_changes():
    trace, lit = make_trace(), Spotlight("kept", (1,), veiled=True, among=(0, 1), most=2)
    plain, lesson = (unpack(view_data(trace, Shown(), table("en"), each))[0] for each in (None, lit))
    assert plain.pop("spotlight") is None
    assert lesson.pop("spotlight") == {
        "term": "kept", "tokens": [1], "veiled": True, "among": [0, 1], "marked": [], "most": 2,
    }  # fmt: skip
    assert plain == lesson


def test_marks_are_those_of_the_run_that_can_be_marked():
    trace, lit = make_trace(), Spotlight(veiled=True, among=(0, 1, 3))
    own = {"id": trace.subject, "tokens": [3, 0, 0, 2, 99, -1, "1", None, [1]]}
    assert _marked(own, trace, lit) == (0, 3)
    assert _marked({**own, "id": "other"}, trace, lit) == _marked(own, trace, None) == ()
    assert _marked(None, trace, lit) == _marked({"id": trace.subject, "tokens": "01"}, trace, lit) == ()
