"""Reading prompts: any text that can be encoded, and a message for the rest."""

import numpy as np
import pytest

from analysis.trace.tokenize import decode_pieces, read_answer, read_prompt
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


def test_a_text_of_many_megabytes_is_refused_before_it_is_tokenised():
    class Counting:
        """A tokenizer that counts the characters it is given."""

        is_fast, read = True, 0

        def __call__(self, text, **options):
            self.read += len(text)
            return TOKENIZER(text, **options)

        def __getattr__(self, name):
            return getattr(TOKENIZER, name)

    text, counting = "the cat " * 10**6, Counting()
    with pytest.raises(PromptTooLongError, match="8,000,000 characters; at most 50 tokens fit"):
        read_prompt(text, counting, 50)
    with pytest.raises(PromptError, match="answer has 8,000,000 characters; 50 tokens fit"):
        read_answer(text, counting, 50)
    assert not counting.read
    cut = read_prompt(text, counting, 50, truncate=True)
    assert len(cut.token_ids) == 50 and counting.read < 10_000


def test_an_answer_has_to_fit_behind_the_prompt():
    assert read_answer("", TOKENIZER, 0) == []
    ids = TOKENIZER(" the mat")["input_ids"]
    assert read_answer(" the mat", TOKENIZER, len(ids)) == ids
    with pytest.raises(PromptError, match=f"answer has {len(ids)} tokens; {len(ids) - 1} fit after the prompt"):
        read_answer(" the mat", TOKENIZER, len(ids) - 1)
    with pytest.raises(PromptError, match=r"The answer has half of a surrogate pair"):
        read_answer("\ud800", TOKENIZER, 10)


@pytest.mark.parametrize("template", ["{{ nobody.role }}", "{{ raise_exception('no') }}", "{% if %}"])
def test_a_chat_template_that_fails_is_said(template):
    broken = byte_tokenizer()
    broken.chat_template = template
    with pytest.raises(PromptError, match="chat template cannot take this prompt"):
        read_prompt("the cat", broken, 50, chat=True)


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
