"""Reading prompts: any text that can be encoded, and a message for the rest."""

import numpy as np
import pytest

from analysis.prompt import decode_pieces, read_prompt
from subllm import PromptError, PromptTooLongError
from tests.conftest import byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize(
    "text",
    ["the cat", "مرحبا بالعالم", "🦙👨‍👩‍👧 family", "nul \0 inside", "tab\tand\r\nlines", "<b>$x$</b>", "a" * 300],
)
def test_any_text_is_read_and_its_tokens_cover_it(text):
    prompt = read_prompt(text, TOKENIZER, 1000)
    assert prompt.text == text
    assert TOKENIZER.decode(prompt.token_ids) == text
    covered = np.zeros(len(text), dtype=bool)
    for start, end in zip(prompt.starts, prompt.ends, strict=True):
        covered[start:end] = True
    assert covered.all()
    assert len(prompt.pieces) == len(prompt.token_ids)


def test_several_tokens_of_one_character_are_numbered():
    prompt = read_prompt("🦙", TOKENIZER, 10)
    assert prompt.pieces.tolist() == ["🦙 1/4", "🦙 2/4", "🦙 3/4", "🦙 4/4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\t ", r"white space only \(4 characters\)"),
        ("a\ud83db", r"U\+D83D\) at character 2"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(PromptError, match=message):
        read_prompt(text, TOKENIZER, 10)


def test_a_long_prompt_is_refused_with_both_numbers_or_cut():
    text = "xyz " * 30
    tokens = len(TOKENIZER(text)["input_ids"])
    with pytest.raises(PromptTooLongError, match=f"{tokens} tokens; at most 50") as caught:
        read_prompt(text, TOKENIZER, 50)
    assert (caught.value.tokens, caught.value.limit) == (tokens, 50)
    cut = read_prompt(text, TOKENIZER, 50, truncate=True)
    assert len(cut.token_ids) == 50
    assert text.startswith(cut.text)
    np.testing.assert_array_equal(cut.token_ids, TOKENIZER(text)["input_ids"][:50])


def test_the_chat_template_is_part_of_the_text():
    prompt = read_prompt("the cat", TOKENIZER, 50, chat=True)
    assert prompt.text == "<user>the cat<model>"
    assert prompt.pieces[0] == "<user>"
    plain = byte_tokenizer()
    plain.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        read_prompt("the cat", plain, 50, chat=True)


def test_single_tokens_have_a_readable_text():
    pieces = decode_pieces(np.asarray(TOKENIZER(" the🦙\0")["input_ids"]), TOKENIZER)
    assert pieces[0] == " the"
    assert pieces[-1] == "␀"
    assert all("\ufffd" not in piece and piece for piece in pieces.tolist())
