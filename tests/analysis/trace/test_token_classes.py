"""Classes of tokens by their text."""

import numpy as np

from analysis import Prompt
from analysis.trace.token_classes import kinds_of, spans_of, words_of


def test_a_word_may_have_several_tokens_and_a_character_too():
    text, starts, ends = "hello, wor" + "ld 🦙", [0, 3, 5, 6, 10, 13, 13], [3, 5, 6, 10, 12, 14, 14]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert words_of(Prompt(text, np.arange(7), starts, ends, pieces)).tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_characters_of_a_class_are_found_as_stretches():
    assert list(spans_of("digits", "a 12 b3")) == [(2, 4), (6, 7)]
    assert list(spans_of("spaces", "a 12\n b")) == [(1, 2), (4, 6)]


def test_kinds_of_tokens():
    pieces = ["The", " cat", "s", " sat", ",", " 2", "5", " ", "\n", "Mat", "é"]
    assert kinds_of(pieces) == [
        "beginning", "beginning", "continuation", "beginning", "punctuation", "digit", "digit", "space", "space",
        "beginning", "continuation",
    ]  # fmt: skip
