"""Segments: every token belongs to one of each kind, and shares are those of the kept tokens."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.quality.segments import SegmentKind, has_turns, segments
from analysis.trace.parts import Prompt
from tests.analysis.trace.test_trace import make_trace

CHAT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy? Because.<|im_end|>\n<|im_start|>assistant\n"


def prompt_of(text, cuts):
    """A prompt whose tokens end at the cuts."""
    ends = sorted({*cuts, len(text)} - {0})
    starts = [0, *ends[:-1]]
    pieces = [text[start:end] or "?" for start, end in zip(starts, ends, strict=True)]
    return Prompt(text, np.arange(len(ends)), np.asarray(starts), np.asarray(ends), np.asarray(pieces, dtype=np.str_))


def characters(text):
    return prompt_of(text, range(1, len(text)))


def routing_of(tokens, seed=0):
    """Routing of three levels, the second inside of the first, at random."""
    rng = np.random.default_rng(seed)
    kept = rng.random((3, tokens)) < 0.6
    kept[1] &= kept[0]
    reached = np.stack([np.ones(tokens, dtype=bool), kept[0], np.ones(tokens, dtype=bool)])
    nothing = np.full((3, tokens), np.nan, dtype=np.float32)
    return replace(
        make_trace().routing,
        routers=np.asarray(["subllm"] * 3),
        parents=np.asarray([0, 1, 0]),
        retention_ratios=np.full(3, 0.6),
        block_levels=np.asarray([0, 1, 2, 1, 3, 0]),
        bypass_scale=np.ones((3, 4), dtype=np.float32),
        thresholds=np.zeros(3, dtype=np.float32),
        reached=reached,
        kept=kept,
        edited=np.zeros_like(kept),
        weights=kept.astype(np.float32),
        scores=nothing,
        stream_norm=nothing,
        difference_norm=nothing,
        contribution_norm=nothing,
        site_kinds=np.full(3, "level"),
        site_blocks=np.full(3, -1),
        strides=np.ones(3, dtype=np.int64),
        work=np.ones((6, tokens), dtype=np.float16),
    )


texts = st.text(st.sampled_from("ab Z1.?!\n\t。？你я😀<|im_start|>user"), min_size=1, max_size=60)


@given(texts, st.sets(st.integers(1, 59), max_size=30), st.sampled_from([*SegmentKind]))
def test_parts_cover_the_text_and_their_shares_are_those_of_its_kept_tokens(text, cuts, kind):
    prompt = prompt_of(text, {cut for cut in cuts if cut < len(text)})
    routing = routing_of(len(prompt))
    found = segments(prompt, routing, kind)
    assert len(found.of_token) == len(prompt) == found.tokens.sum()
    assert (found.tokens > 0).all() and len(found.names) == len(found.tokens)
    np.testing.assert_array_equal(found.kept.sum(1), routing.kept.sum(1))
    np.testing.assert_array_equal(found.reached.sum(1), routing.reached.sum(1))
    assert sorted(token for segment in range(len(found.names)) for token in found.places(segment)) == [
        *range(len(prompt))
    ]
    for level in routing.levels:
        share, (low, high) = found.share(level), found.interval(level)
        for segment, places in enumerate(map(found.places, range(len(found.names)))):
            assert share[segment] == pytest.approx(routing.kept[level - 1][places].mean())
        assert ((low >= 0) & (low <= share) & (share <= high) & (high <= 1)).all()
        assert np.all(np.diff(share[found.order(level)]) >= 0)
    if kind in (SegmentKind.SENTENCE, SegmentKind.LINE) and len(found.names) > 1 and "<" not in text:
        assert all(found.names)
    if kind not in (SegmentKind.WORD, SegmentKind.SCRIPT, SegmentKind.QUESTION):
        assert np.all(np.diff(found.of_token) >= 0)  # a part is one stretch of the text


def names(text, kind):
    prompt = characters(text)
    return segments(prompt, routing_of(len(prompt)), kind).names


def test_turns_are_found_in_common_chat_templates():
    assert names(CHAT, SegmentKind.TURN) == ["1 system", "2 user", "3 assistant"]
    assert names("<bos><start_of_turn>user\nHi<start_of_turn>model\n", SegmentKind.TURN) == [
        "",
        "1 user",
        "2 assistant",
    ]
    llama = "<|start_header_id|>system<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nB"
    assert names(llama, SegmentKind.TURN) == ["1 system", "2 user"]
    assert names("<s>[INST] <<SYS>>\nA<</SYS>> B [/INST]", SegmentKind.TURN) == [
        "", "1 system", "2 user", "3 assistant",
    ]  # fmt: skip
    assert names("[INST] A [/INST] B</s>[INST] C [/INST]", SegmentKind.TURN) == [
        "1 user", "2 assistant", "3 user", "4 assistant",
    ]  # fmt: skip
    assert not has_turns(characters("The <model> and its <user> are tags of XML."))
    assert has_turns(characters(CHAT)) and not has_turns(characters("No chat at all."))


def test_sentences_lines_questions_words_and_scripts():
    text = 'He paid 2.5 km. "Why?" she asked.\nНет. 你好。好吗？\n\nEnd'
    assert names(text, SegmentKind.SENTENCE) == [
        "He paid 2.5 km.", '"Why?"', "she asked.", "Нет.", "你好。", "好吗？", "End",
    ]  # fmt: skip
    assert names(text, SegmentKind.LINE) == ['He paid 2.5 km. "Why?" she asked.', "Нет. 你好。好吗？", "End"]
    assert names(text, SegmentKind.QUESTION) == ['"Why?"', "好吗？", ""]
    assert names("The cat, the CAT", SegmentKind.WORD) == ["the", "' '", "cat", ","]
    assert names("aя你カ1!\n", SegmentKind.SCRIPT) == [
        "Latin",
        "Cyrillic",
        "Han",
        "Katakana",
        "digits",
        "symbols",
        "spaces",
    ]


def test_a_word_gathers_all_its_places_and_the_worst_comes_first():
    prompt = prompt_of("cat dog cat dog", {3, 7, 11})
    routing = routing_of(4)
    kept = np.asarray([[True, False, True, False]] * 3)
    found = segments(prompt, replace(routing, kept=kept, reached=np.ones_like(kept)), SegmentKind.WORD)
    assert found.names == ["cat", "dog"] and found.tokens.tolist() == [2, 2]
    assert found.share(1).tolist() == [1, 0]
    assert [found.names[segment] for segment in found.order(1)] == ["dog", "cat"]
    assert found.places(1).tolist() == [1, 3]
    low, high = found.interval(1)
    assert low[0] == pytest.approx(0.342, abs=1e-3) and high[1] == pytest.approx(0.658, abs=1e-3)  # Wilson (1927)


@pytest.mark.parametrize("text", ["." * 200_000, ".!" * 100_000, "\n " * 100_000, "。" * 200_000, "<|" * 100_000])
def test_long_runs_of_marks_take_linear_time(text):
    """Quadratic time would take minutes."""
    prompt = prompt_of(text + "x", {100})
    for kind in SegmentKind:
        segments(prompt, routing_of(len(prompt)), kind)


def test_the_trace_is_enough():
    trace = make_trace()
    for kind in SegmentKind:
        assert segments(trace.prompt, trace.routing, kind).tokens.sum() == trace.num_tokens
