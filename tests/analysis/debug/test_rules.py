"""Rules: what they promise, on prompts that they were not written for; and files that keep them, or are refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import AnalysisError
from analysis.debug.edits import Edit, EditKind, LevelKind, parse_edits
from analysis.debug.named_tokens import find_tokens
from analysis.debug.rules import LONGEST_NAME, MOST_BYTES, Rule, load_rule
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import read_prompt
from subllm.assets import ASSETS

SHIPPED = sorted((ASSETS / "rules").glob("*.json"))
LEVELS = (LevelKind(scores=True, merges=False),) * 2
CHAT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich Gate is 12?<|im_end|>\n<|im_start|>assistant\n"


def prompt_of(text):
    """A prompt of a character a token."""
    places = np.arange(len(text))
    return Prompt(text, places + 1, places, places + 1, np.asarray(list(text), dtype=np.str_))


def named(edits, text):
    prompt = prompt_of(text)
    return ["".join(text[token] for token in edit.named(prompt)) for edit in edits]


def content(**changes):
    return {"format": 1, "name": "Digits", "description": "", "edits": ["keep digits@*"]} | changes


def read(**changes):
    return Rule.read(json.dumps(content(**changes)).encode())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rules_can_be_read_and_fit_any_prompt(path):
    rule = load_rule(path)
    assert rule.description.endswith(".") and all(edit.level is None for edit in rule.edits)
    for text in ("x", CHAT, "12 gates. " * 50):
        rule.on(prompt_of(text), LEVELS)
    assert rule.written() == path.read_bytes()


def test_a_rule_names_the_tokens_of_the_prompt_that_it_is_applied_to():
    rule = Rule(
        "Several", "", tuple(parse_edits("keep system@*; keep user@1; keep digits@2; drop 0-3@1; keep last 4@*"))
    )
    edits = rule.on(prompt_of(CHAT), LEVELS)
    assert named(edits, CHAT) == ["Be brief.", "Which Gate is 12?", "12", "<|im", "ant\n"]


@pytest.mark.parametrize("text", ["今天天气很好。" * 9, "Cat 12 🦙 你好 Ж é, 4 cats"])
def test_a_rule_on_ids_alone_names_the_tokens_that_it_names_on_the_page(text, checkpoint):
    rule = load_rule(ASSETS / "rules" / "protect-capitals-and-numbers.json")
    prompt = read_prompt(text, checkpoint.tokenizer, 500)
    override = rule.override(checkpoint, torch.tensor(prompt.token_ids)[None])
    for edit in rule.edits:
        assert [find_tokens(edit.tokens, each) for each in override.prompts] == [find_tokens(edit.tokens, prompt)]


def test_edits_that_find_nothing_in_a_prompt_are_left_out_and_numbers_end_with_it():
    rule = Rule(
        "Several", "", tuple(parse_edits("keep system@*; keep digits@2; keep 'gate'@1; drop 2-9@1; budget 3@1"))
    )
    assert [*map(str, rule.on(prompt_of("abc"), LEVELS))] == ["drop 2@1", "budget 3@1"]
    assert [*map(str, rule.on(prompt_of("ab"), LEVELS))] == ["budget 3@1"]


@pytest.mark.parametrize(("line", "why"), [("keep digits@3", "Level 3"), ("threshold 0.5@*", "does not score")])
def test_a_rule_that_does_not_fit_a_model_says_why(line, why):
    rule = Rule("Odd", "", tuple(parse_edits(line)))
    with pytest.raises(AnalysisError, match=rf"The rule 'Odd' does not fit this model\. .*{why}"):
        rule.on(prompt_of("abc 12"), (LEVELS[0], LevelKind(scores=False, merges=False)))


@pytest.mark.parametrize("line", ["keep digits@*", "drop 0@2", "threshold 0@2", "retention 0.5@2", "budget 3@*"])
def test_edits_that_choose_tokens_are_refused_where_a_router_merges_them(line):
    levels = (LEVELS[0], LevelKind(scores=False, merges=True))
    with pytest.raises(AnalysisError, match=r"chooses tokens of Level 2, but .* merges"):
        Rule("Odd", "", tuple(parse_edits(line))).on(prompt_of("abc 12"), levels)
    Rule("Even", "", tuple(parse_edits("dense@2; bypass 0.5@*; keep digits@1"))).on(prompt_of("abc 12"), levels)


WRONG = {
    "no bytes": (b"", "not JSON"),
    "no text": (b"\xff\xfe\x00", "not JSON"),
    "nested": (b"[" * 60_000, "not JSON"),
    "long number": (b"9" * 5_000, "not JSON"),
    "twice": (b'{"format": 1, "format": 1}', "twice"),
    "list": (b"[]", "no JSON object"),
    "long": (b" " * (MOST_BYTES + 1), "65,537 bytes"),
    "no format": (b"{}", "format None"),
    "later format": (json.dumps(content(format=2)).encode(), "format 2"),
    "true format": (json.dumps(content(format=True)).encode(), "format True"),
    "unknown field": (json.dumps(content(levels=3)).encode(), "levels"),
    "missing field": (b'{"format": 1, "name": "x", "edits": []}', "description"),
    "no name": (json.dumps(content(name=" ")).encode(), "name of a rule"),
    "long name": (json.dumps(content(name="x" * (LONGEST_NAME + 1))).encode(), "1 to 60 characters"),
    "two lines": (json.dumps(content(name="a\nb")).encode(), "one line"),
    "other direction": (json.dumps(content(name="a\u202eb")).encode(), "one line"),
    "half a pair": (json.dumps(content(edits=["keep '\ud800'@1"])).encode(), "surrogate"),
    "number": (json.dumps(content(name=3)).encode(), "must be texts"),
    "no list": (json.dumps(content(edits="keep digits@1")).encode(), "list of texts"),
    "no edits": (json.dumps(content(edits=[])).encode(), "0 edits"),
    "many edits": (json.dumps(content(edits=["dense@1"] * 201)).encode(), "more than 200 edits"),
    "many tokens": (json.dumps(content(edits=["drop 0-200000@1"] * 150)).encode(), "more than 262,144 tokens"),
    "unknown class": (json.dumps(content(edits=["keep nouns@1"])).encode(), "'nouns' names no tokens"),
    "unknown word": (json.dumps(content(edits=["save digits@1"])).encode(), "cannot be read"),
    "two in one": (json.dumps(content(edits=["dense@1; dense@2"])).encode(), "cannot be read"),
    "leaves nothing": (json.dumps(content(edits=["retention 0@1"])).encode(), "leaves nothing"),
    "share": (json.dumps(content(edits=["retention 1.5@1"])).encode(), "from 0 to 1"),
    "no budget": (json.dumps(content(edits=["budget 0@1"])).encode(), "whole number of tokens from 1"),
    "half a token": (json.dumps(content(edits=["budget 2.5@1"])).encode(), "whole number of tokens from 1"),
    "not a budget": (json.dumps(content(edits=["budget nan@1"])).encode(), "whole number of tokens from 1"),
    "last none": (json.dumps(content(edits=["keep last 0@1"])).encode(), "names no tokens"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_no_rule_is_refused_with_a_message(what):
    data, message = WRONG[what]
    with pytest.raises(AnalysisError, match=message) as caught:
        Rule.read(data)
    str(caught.value).encode()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "format": st.just(1) | ANY_JSON,
        "name": st.text() | ANY_JSON,
        "description": st.text() | ANY_JSON,
        "edits": st.lists(
            st.text()
            | st.builds(
                "{} {}@{}".format,
                st.sampled_from([*map(str, EditKind)]),
                st.sampled_from(["digits", "last 3", "0-5", "'a;b'", "0.5", "user", "1e9"]) | st.text(max_size=5),
                st.sampled_from(["*", "1", "0", "-1"]),
            ),
            max_size=5,
        )
        | ANY_JSON,
    },
)


@settings(max_examples=300)
@given(st.binary(max_size=300) | ANY_JSON.map(json.dumps).map(str.encode) | NEARLY.map(json.dumps).map(str.encode))
def test_any_bytes_are_a_rule_or_give_a_message(data):
    try:
        rule = Rule.read(data)
    except AnalysisError as error:
        str(error).encode()
    else:
        assert Rule.read(rule.written()) == rule
        rule.on(prompt_of("a 12 bc"), LEVELS[:1] * 9)


NAMED = st.sampled_from(["digits", "'é;\"'", "2-4", "last 8"])
EDITS = st.one_of(
    st.builds(Edit, st.sampled_from(["keep", "drop"]), st.none() | st.integers(1, 9), NAMED),
    st.builds(Edit, st.just("threshold"), st.none(), value=st.floats(-10, 10)),
    st.builds(Edit, st.just("budget"), st.integers(1, 9), value=st.integers(1, 9999).map(float)),
    st.builds(Edit, st.just("dense"), st.integers(1, 9)),
)


@given(st.text(min_size=1, max_size=60), st.lists(EDITS, min_size=1, max_size=8))
def test_a_saved_rule_is_the_rule_that_is_read(name, edits):
    try:
        rule = Rule(name, "A description.", tuple(edits))
    except AnalysisError:
        assert not (name.isprintable() and name.strip())
        return
    assert Rule.read(rule.written()) == rule


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AnalysisError, match=r"rule.*none\.json cannot be read \(No such file"):
        load_rule(tmp_path / "none.json")
