"""A report holds the run and nothing else: packed as for the page, escaped, without a way to the network."""

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis import Blocks, Predictions, Prompt, Routing
from analysis.figures import summary
from analysis.figures.routing_view.data import Shown, view_data
from analysis.figures.strings import LANGUAGES, table
from analysis.figures.terms import flag_in_words
from analysis.report import again
from analysis.report.html import report
from analysis.trace.flags import flags
from tests.analysis.trace.test_trace import make_trace

HOSTILE = "</script><script>bad()</script><img src=x onerror=bad()> $x$ **b** {0} &lt; \u2028"
LARGEST = 2_000_000  # bytes, at 8,192 tokens


class Found(HTMLParser):
    """Elements and texts of a document, as a browser's parser takes them apart."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def hostile_trace():
    trace = make_trace(tokens=len(HOSTILE), seed=2)
    prompt = Prompt(
        HOSTILE, trace.prompt.token_ids, np.arange(len(HOSTILE)), np.arange(len(HOSTILE)) + 1, np.asarray([*HOSTILE])
    )
    new = replace(trace.continuation, text=f"\n{HOSTILE}")
    where = replace(trace.provenance, checkpoint=HOSTILE, device=HOSTILE, rule=HOSTILE)
    predictions = Predictions(np.arange(1), np.asarray([0.5]), np.asarray([HOSTILE]))
    return replace(trace, prompt=prompt, continuation=new, provenance=where, predictions=predictions, note=HOSTILE)


def packed(text):
    """The data of the views."""
    found = re.findall(r'<script type="text/plain" class="data">([^<]*)</script>', text)
    return [zlib.decompress(base64.b64decode(each)) for each in found]


def test_the_data_are_those_of_the_page():
    traces = [make_trace(tokens=9), make_trace("T(T)T", tokens=12, seed=4)]
    assert packed(report(traces[:1], shown=Shown(level=2, selected=3, until=4))) == [
        view_data(traces[0], Shown(level=2, selected=3, until=4), table("en"))
    ]
    assert packed(report(traces, shown=Shown(level=2))) == [
        view_data(traces[0], Shown(level=2), table("en")),
        view_data(traces[1], Shown(), table("en")),  # which has no Level 2
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_whatever_a_run_says_is_text(language):
    text = report([hostile_trace()], language=language, names=[HOSTILE], note=HOSTILE)
    found, plain = Found(text), Found(report([make_trace()], language=language))
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in plain.elements} | {"p"}
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert sum(tag == "script" for tag, _ in found.elements) == 3
    said = "".join(found.texts)
    assert said.count(HOSTILE) > 8
    words = json.loads(re.search(r'class="words">(.*)</script>', text)[1])
    assert HOSTILE in words["titles"][language]


def test_the_policy_allows_its_own_script_and_styles_alone():
    text = report([make_trace()])
    elements = Found(text).elements
    policy = next(each["content"] for tag, each in elements if each.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.keys() == {"script-src", "style-src"}
    assert all(each.startswith("'sha256-") for rule in rules.values() for each in rule.split())
    assert not [each for _, each in elements if {"src", "href", "style", "action"} & each.keys()]
    for kind, mark in (("script", '<script type="module">'), ("style", "<style>")):
        content = re.findall(f"{mark}(.*?)</{kind}>", text, re.S)
        assert content
        for each in content:
            assert base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() in policy


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_says_what_the_pages_say(language):
    trace, words = make_trace(tokens=60), table(language)
    trace = replace(trace, routing=replace(trace.routing, retention_ratios=np.full(3, 0.1)))  # which is odd
    said = "".join(Found(report([trace], language=language)).texts)
    for each in summary.headline(trace, words):
        assert each.label in said and each.value in said
    for rows in (summary.level_table(trace, words), summary.cost_table(trace, words)):
        assert len(rows)
        for name, row in rows.iterrows():
            assert name in said and all(value in said for value in row)
    assert summary.measured(trace, words) in said and summary.agreement(trace, words) in said
    assert all(edit in said for edit in trace.provenance.edits)
    assert flags(trace) and all(flag_in_words(trace, flag, words) in said for flag in flags(trace))
    for value in (trace.provenance.digest, trace.provenance.structure, trace.provenance.versions):
        assert value in said


def test_what_was_not_measured_is_said_so():
    said = "".join(Found(report([make_trace(parts=())])).texts)
    assert table("en")["not_measured"] in said and table("en")["continuation_none"] in said


def test_a_long_run_of_a_deep_model_stays_small():
    rng, tokens = np.random.default_rng(0), 8192
    kept = np.stack([rng.random(tokens) < 0.64] * 2)
    kept[1] &= rng.random(tokens) < 0.64
    reached = np.stack([np.ones(tokens, bool), kept[0]])
    blocks = np.repeat([0, 1, 2, 1, 0], [8, 3, 4, 3, 12])
    floats = {
        name: rng.standard_normal((2, tokens)).astype(np.float32)
        for name in ("weights", "scores", "stream_norm", "difference_norm", "contribution_norm")
    }
    routing = Routing(
        routers=np.asarray(["subllm"] * 2), parents=np.asarray([0, 1]), retention_ratios=np.full(2, 0.64),
        block_levels=blocks, bypass_scale=np.ones((2, 4)), thresholds=np.zeros(2), reached=reached, kept=kept,
        edited=np.zeros_like(kept), **floats,
    )  # fmt: skip
    half = rng.random((30, tokens)).astype(np.float16)
    trace = make_trace("T(T)T", tokens=2, parts=())
    letters = "".join(map(chr, rng.integers(97, 123, 4 * tokens)))
    starts = 4 * np.arange(tokens)
    prompt = Prompt(
        letters, rng.integers(0, 49152, tokens), starts, starts + 4, np.asarray([letters[n : n + 4] for n in starts])
    )
    trace = replace(trace, prompt=prompt, routing=routing, blocks=Blocks(half, half[::-1].copy()))
    assert len(report([trace]).encode()) < LARGEST


def test_the_commands_name_the_run():
    trace = make_trace(tokens=6)
    trace = replace(
        trace, prompt=replace(trace.prompt, text="-it's\n$x"), provenance=replace(trace.provenance, edits=())
    )
    where = replace(trace.provenance, checkpoint="my model", dtype="float32")
    first, second = again.commands(replace(trace, provenance=where))
    assert first == (
        "subllm trace --checkpoint FOLDER --dtype float32 '--prompt=-it'\"'\"'s\n$x' --new-tokens 2 --compare "
        "--out trace.npz"
    )
    assert second == "subllm report trace.npz --out report.html"
    edited = replace(where, checkpoint="shipped:demo", edits=("drop 1-2@*", "threshold -0.5@1", "dense@2"))
    first, _ = again.commands(replace(trace, provenance=edited))
    assert first.startswith("subllm trace --dtype float32 '--prompt")
    assert first.endswith("'--drop=1-2@*' --threshold=-0.5@1 --dense=2 --out trace.npz")
    small = replace(where, checkpoint="shipped:small")
    assert "--checkpoint assets/small/final" in again.commands(replace(trace, provenance=small))[0]
    long = replace(trace, prompt=replace(trace.prompt, text="a" * 601))
    assert "--prompt-file prompt.txt" in again.commands(long)[0]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("shipped:demo", ""), ("demo-0123456789ab", ""), ("deep-0123456789ab", "deep"), ("shipped:deep", "deep"),
        ("demo-mine", "FOLDER"), ("demo", "FOLDER"), ("final", "FOLDER"), ("", "FOLDER"), ("shipped:x", "FOLDER"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_located_is_named_in_words(name, option):
    trace = make_trace()
    trace = replace(trace, provenance=replace(trace.provenance, checkpoint=name, digest="0123abcd", edits=()))
    command = again.commands(trace)[0]
    assert command.startswith(f"subllm trace {f'--checkpoint {option} ' if option else ''}--dtype")
    words = table("en")["report_again_folder"].format(folder="FOLDER", name=repr(name), digest="0123abcd")
    assert (words in "".join(Found(report([trace])).texts)) == (option == "FOLDER")


def test_a_run_with_an_answer_or_a_patch_says_so_and_a_patch_is_not_made_again():
    trace, words = make_trace(), table("en")
    patch = "token 0 of another prompt for token 1 before Level 1, abc"
    trace = replace(trace, provenance=replace(trace.provenance, edits=(), rule="", answer_from=1, patch=patch))
    said = "".join(Found(report([trace])).texts)
    assert words["report_answer"] in said and patch in said
    assert again.commands(trace) == ["subllm report trace.npz --out report.html"]
    assert words["report_again_patch"] in said
    assert len(again.commands(replace(trace, provenance=replace(trace.provenance, patch="")))) == 2
