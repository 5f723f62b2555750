"""Prompt and answer as one run, against the generation that wrote the answer."""

from dataclasses import replace

import numpy as np
import pytest

from analysis import AnalysisError, TraceError
from analysis.debug.answer import edits_with_answer, with_answer
from analysis.debug.edits import parse_edits
from analysis.debug.generation import Generation
from analysis.debug.named_tokens import find_tokens
from analysis.run import RunOptions, answer_stages, record_trace
from analysis.trace.trace import Trace

TEXT = "the cat sat on the mat 🦙 and then"


def read_back(checkpoint, trace, ids, edits=()):
    *_, found = answer_stages(checkpoint, trace.prompt, with_answer(trace.prompt, ids, checkpoint.tokenizer), edits)
    return found


def test_the_routing_of_the_answer_is_that_of_its_generation(checkpoint, trace, tmp_path):
    ids = trace.continuation.ids.tolist()
    found, before = read_back(checkpoint, trace, ids), trace.num_tokens
    assert found.provenance.answer_from == before
    assert found.prompt.token_ids.tolist() == [*trace.prompt.token_ids.tolist(), *ids]
    assert found.prompt.pieces[:before].tolist() == trace.prompt.pieces.tolist()
    np.testing.assert_array_equal(found.routing.kept[:, before:], trace.continuation.kept)
    np.testing.assert_allclose(found.routing.scores[:, before:], trace.continuation.scores, atol=1e-4)
    np.testing.assert_array_equal(found.routing.kept[:, :before], trace.routing.kept)
    found.save(tmp_path / "whole.npz")
    assert Trace.load(tmp_path / "whole.npz").digest == found.digest


@pytest.mark.parametrize("line", ["drop 'cat'@1; keep 3-5@2", "drop last 2@1", "threshold 0.2@1; bypass 0.5@2"])
def test_edits_name_the_tokens_of_the_answer_that_they_named_in_the_generation(checkpoint, line):
    edits = tuple(parse_edits(line))
    trace = record_trace(checkpoint, TEXT, RunOptions(0, False))
    text = Generation(checkpoint.model, trace.prompt, edits=edits)
    cat = checkpoint.tokenizer(" cat", add_special_tokens=False)["input_ids"][0]
    written = [text.step(choice) for choice in (cat, None, cat, None)]  # which the class "'cat'" does not mean
    found = read_back(checkpoint, trace, [token.id for token in written], edits)
    np.testing.assert_array_equal(found.routing.kept[:, trace.num_tokens :].T, [token.kept for token in written])
    assert found.provenance.edits == tuple(map(str, edits_with_answer(edits, trace.prompt, found.num_tokens)))


def test_a_text_that_is_tokenised_alike_stands_for_the_run_and_any_other_keeps_its_tokens(checkpoint, trace):
    tokenizer = checkpoint.tokenizer
    alike = tokenizer(" and then", add_special_tokens=False)["input_ids"]
    found = with_answer(trace.prompt, alike, tokenizer)
    assert found.again and found.prompt.text == trace.prompt.text + " and then"
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "cat"]
    found = with_answer(trace.prompt, letters, tokenizer)
    assert not found.again and found.prompt.token_ids[-3:].tolist() == letters
    assert found.prompt.text == trace.prompt.text + "cat"
    assert found.prompt.pieces[-3:].tolist() == ["c", "a", "t"]


def test_parts_of_characters_in_an_answer_are_no_digits_or_capitals(checkpoint, trace):
    llama = checkpoint.tokenizer("🦙", add_special_tokens=False)["input_ids"]
    found = with_answer(trace.prompt, [*llama, *llama[:2]], checkpoint.tokenizer)
    assert not found.again and found.prompt.text == trace.prompt.text + "🦙\ufffd\ufffd"
    assert [*find_tokens("digits", found.prompt), *find_tokens("capitals", found.prompt)] == []
    assert find_tokens("'🦙'", found.prompt)[-4:] == tuple(range(trace.num_tokens, trace.num_tokens + 4))


def test_without_an_answer_there_is_nothing_to_read_back(checkpoint, trace):
    with pytest.raises(AnalysisError, match="no answer"):
        with_answer(trace.prompt, [], checkpoint.tokenizer)
    with pytest.raises(TraceError, match=f"there are {trace.num_tokens} tokens"):
        replace(trace, provenance=replace(trace.provenance, answer_from=trace.num_tokens))
