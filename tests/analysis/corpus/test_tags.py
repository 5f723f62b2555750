"""Tags say of every token what a person would say who looks at its text and place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.corpus.closed_classes import CHINESE, ENGLISH
from analysis.corpus.schema import KINDS, SCRIPTS, SEGMENTS, WORDS, Flag
from analysis.corpus.tags import tags_of, window_flags
from analysis.trace.token_classes import kinds_of


def tagged(*pieces, special=()):
    """Tags of consecutive pieces of a text."""
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    return tags_of("".join(pieces), starts, ends, np.array([piece in special for piece in pieces], dtype=bool))


def with_flag(flag, *pieces):
    """The pieces that have a flag."""
    return [piece for piece, flags in zip(pieces, tagged(*pieces).flags, strict=True) if flags & flag]


@given(st.lists(st.text(alphabet="aZé你½²7_ \n\t.,-'٣", min_size=1, max_size=3), min_size=1, max_size=12))
def test_kinds_are_those_of_the_trace(pieces):
    assert [KINDS[code] for code in tagged(*pieces).kind] == kinds_of(pieces)


def test_scripts_are_those_of_the_first_letter():
    pieces = ["cat", " 你", "(я", "γ", "12", "½", " ", "?!", "の", "ㄅ", "ꦏ"]
    found = [SCRIPTS[code] for code in tagged(*pieces).script]
    expected = ["Latin", "Han", "Cyrillic", "Greek", "digits", "digits", "spaces", "symbols", "Hiragana", "Bopomofo"]
    assert found == [*expected, "other"]


def test_every_token_of_a_word_has_the_words_class():
    pieces = ["The", " har", "bour", " isn", "'t", " of", " 12", "?", "我", "们", "不", "鲸"]
    found = [WORDS[code] for code in tagged(*pieces).word]
    expected = ["article", "content", "content", "negation", "negation", "preposition", "content", "none"]
    assert found == [*expected, "pronoun", "particle", "negation", "content"]
    assert len(ENGLISH) > 300 and len(CHINESE) > 80


def test_words_begin_once_and_go_on():
    pieces = ("har", "bour", " gate", "s", "-", "keeper", "你", "好")
    assert with_flag(Flag.WORD_START, *pieces) == ["har", " gate", "keeper"]
    assert with_flag(Flag.WORD_INSIDE, *pieces) == ["bour", "s"]


def test_lines_begin_behind_their_indent():
    pieces = ("def", " f", ":", "\n", "    ", "return", " x", "\n", "\n", "y")
    assert with_flag(Flag.LINE_START, *pieces) == ["def", "return", "y"]
    assert with_flag(Flag.INDENT, *pieces) == ["    "]


@pytest.mark.parametrize(
    ("pieces", "inside"),
    [
        (["a", ' "', "b", " c", '"', " d"], ["b", " c"]),
        (["a", ' "', "b", "\n", "\n", "c"], ["b"]),  # a quotation that nobody closes ends with its paragraph
        (["“", "a", "”", "b", "「", "c", "」"], ["a", "c"]),
        (['"', "a", "\\", '"', "b", '"', "c"], ["a", "\\", '"', "b"]),
    ],
)
def test_quoted_is_what_stands_between_quotation_marks(pieces, inside):
    assert [piece for piece in with_flag(Flag.QUOTED, *pieces) if piece != '"' or "\\" in pieces] == inside


def test_bracketed_is_what_stands_between_brackets():
    assert with_flag(Flag.BRACKETED, "a", "(", "b", ")", "c", "[", "d", "{", "e", "}", "f", "]", "g") == list("bdef")
    assert with_flag(Flag.BRACKETED, ")", "a", "(", "b", "\n", "\n", "c") == ["b"]


def test_code_is_told_from_prose():
    code = ('{"name": 1,', "\n", "x == y != z", "\n", "```", "\n", "anything", "\n", "```", "\n")
    prose = ("He left; she said: no,", "\n", "and then", "\n")
    assert with_flag(Flag.CODE, *code, *prose)[:5] == ['{"name": 1,', "\n", "x == y != z", "\n", "```"]
    assert not set(with_flag(Flag.CODE, *code, *prose)) & set(prose[::2])
    assert "anything" in with_flag(Flag.CODE, *code, *prose)


def test_a_question_is_a_sentence_that_asks():
    assert with_flag(Flag.QUESTION, "He came", ".", " Who", " came", "?", "\n", "Nobody", ".") == [" Who", " came", "?"]
    chat = ["<|im_start|>", "user\n", "Why", "?", "<|im_end|>", "\n", "<|im_start|>", "assistant\n", "So", "."]
    assert with_flag(Flag.QUESTION, *chat) == ["Why", "?"]
    assert with_flag(Flag.QUESTION, "谁", "来了", "？", "没", "人", "。") == ["谁", "来了", "？"]
    assert not with_flag(Flag.QUESTION, "see", " x.org/?", "q=1", " now", "\n")  # inside of a sentence


def test_turns_of_a_chat_are_segments():
    pieces = ["<|im_start|>", "system\n", "Be brief.", "<|im_end|>", "\n", "<|im_start|>", "user\n", "Why?"]
    special = {"<|im_start|>", "<|im_end|>"}
    found = tagged(*pieces, special=special)
    assert [SEGMENTS[code] for code in found.segment] == ["mark", "mark", "system", *["mark"] * 4, "user"]
    assert [bool(flags & Flag.SPECIAL) for flags in found.flags] == [piece in special for piece in pieces]
    assert {SEGMENTS[code] for code in tagged("plain", " text").segment} == {"text"}


def test_tokens_of_one_character_begin_no_second_line_or_word():
    found = tags_of("é", np.zeros(2, np.int64), np.ones(2, np.int64), np.zeros(2, bool))
    assert [bool(flags & Flag.LINE_START) for flags in found.flags] == [True, False]
    assert [bool(flags & Flag.WORD_START) for flags in found.flags] == [True, False]


def test_repeats_are_those_of_a_window():
    found = window_flags(np.array([5, 6, 5, 5, 5, 6, 7, 6, 5, 5]), window=5)
    assert [bool(flags & Flag.REPEATED) for flags in found] == [0, 0, 1, 1, 1, 0, 0, 1, 0, 1]
    assert [bool(flags & Flag.WINDOW_START) for flags in found] == [1, 1, 1, 1, 0, 1, 1, 1, 1, 0]


def test_nothing_is_tagged_as_nothing():
    assert len(tagged().kind) == 0
    assert KINDS[tags_of("a", np.array([0]), np.array([0]), np.array([True])).kind[0]] == "punctuation"
