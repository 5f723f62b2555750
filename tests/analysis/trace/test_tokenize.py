"""Reading prompts: any text that can be encoded, and a message for the rest."""

import numpy as np
import pytest
from tokenizers import processors

from analysis.debug.named_tokens import find_tokens
from analysis.trace.tokenize import decode_pieces, joined, prompt_of_ids, read_answer, read_prompt
from subllm import PromptError, PromptTooLongError
from subllm.checkpoints import confined
from tests.conftest import byte_tokenizer, sentencepiece_tokenizer

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
    with pytest.raises(PromptError, match=f"Tokens of the answer: {len(ids)}; {len(ids) - 1} fit after the prompt"):
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


def test_parts_of_a_character_show_their_bytes_and_together_all_of_them():
    ids = TOKENIZER("🦙")["input_ids"]
    assert len(ids) > 1
    pieces = decode_pieces(np.asarray(ids), TOKENIZER).tolist()
    assert bytes.fromhex("".join(piece.strip("⟨⟩") for piece in pieces)) == "🦙".encode()


def test_a_space_that_a_token_begins_with_is_part_of_its_label():
    """SentencePiece's tokenizers leave it out at the beginning of a text."""
    tokenizer = sentencepiece_tokenizer()
    words = tokenizer.get_vocab()
    ids = np.asarray([words[name] for name in ("▁cat", "cat", "▁", "<0x0A>", "<0xF0>", "<s>")])
    assert decode_pieces(ids, tokenizer).tolist() == [" cat", "cat", " ", "\n", "⟨F0⟩", "<s>"]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece_tokenizer()])
def test_an_id_that_the_tokenizer_does_not_have_is_shown_as_one(tokenizer):
    assert decode_pieces(np.asarray([len(tokenizer) + 5]), tokenizer).tolist() == [f"⟨id {len(tokenizer) + 5}⟩"]


def test_the_mark_before_a_text_does_not_take_its_first_character():
    prompt = read_prompt("🦙 cat", sentencepiece_tokenizer(), 50)
    assert prompt.pieces.tolist() == ["▁", "🦙 1/4", "🦙 2/4", "🦙 3/4", "🦙 4/4", " cat"]


MANY_SCRIPTS = "Cat 12 🦙 你好 Ж مرحبا é, 4 cats"


def with_beginning():
    """A tokenizer that begins every text with a special token."""
    tokenizer = sentencepiece_tokenizer()
    beginning = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", beginning)]
    )
    return tokenizer


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece_tokenizer(), with_beginning()])
@pytest.mark.parametrize("text", [MANY_SCRIPTS, "你好" * 20, "<user>the cat"])
def test_ids_alone_are_read_as_their_text_is(tokenizer, text):
    read = read_prompt(text, tokenizer, 500)
    found = prompt_of_ids(read.token_ids, tokenizer)
    assert found.text == text and found.pieces.tolist() == read.pieces.tolist()
    np.testing.assert_array_equal([found.starts, found.ends], [read.starts, read.ends])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentencepiece_tokenizer()])
def test_several_tokens_of_one_character_stand_at_its_place_in_any_text(tokenizer):
    whole = tokenizer(MANY_SCRIPTS)["input_ids"]
    found = joined(np.asarray(whole), tokenizer)
    covered = [found.text[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)]
    assert found.text.strip() == MANY_SCRIPTS and covered.count("🦙") == 4
    for name, characters in {"digits": "124", "capitals": "Cat"}.items():
        assert {*"".join(covered[token] for token in find_tokens(name, found))} - {" "} == {*characters}


def test_a_part_of_a_character_has_no_digits_or_capitals_in_it():
    ids = np.asarray(TOKENIZER("🦙 12")["input_ids"])[1:]
    found = prompt_of_ids(ids, TOKENIZER)
    assert found.text == "\ufffd\ufffd\ufffd 12" and found.pieces[0].startswith("⟨")
    assert not find_tokens("capitals", found)
    assert [found.pieces[token].strip() for token in find_tokens("digits", found)] == ["1", "2"]


def test_a_text_that_has_its_special_tokens_in_it_gets_no_others():
    text = "<s> cat"
    twice, once = (read_prompt(text, with_beginning(), 50, special_tokens=each).token_ids for each in (True, False))
    assert twice.tolist() == [twice[0], *once.tolist()] and twice[0] == once[0]


TEMPLATES = [
    "{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}{% endfor %}{{ add_generation_prompt }}",
    "{%- set ns = namespace(n=0) -%}\n  {% for m in messages %}\n{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}"
    "{% endfor %}",
    "{{ bos_token }}{% if tools is none and not documents %}{{ dict(a=1) }}{% endif %}{{ eos_token }}",
    "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% generation %}x{% set y = 1 %}{{ y }}{% endgeneration %}{{ y }}",
    "{{ messages[0].thinking is defined }}{{ strftime_now('%Y') }}{{ 'é<&>' | tojson }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_reads_as_transformers_writes_it(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    turns = [{"role": "system", "content": " be <b> "}, {"role": "user", "content": "the cat 🦙"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert read_prompt("the cat 🦙", tokenizer, 500, chat=True, system=" be <b> ").text == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "took more than 1 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "took more than 1 seconds"),
        ("{% for i in range(99) %}{{ messages[0].content * 99 }}{% endfor %}", "68,607 characters, and 7,559 are"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "SecurityError"),
    ],
)
def test_a_chat_template_that_never_ends_or_floods_the_memory_is_stopped(template, message, monkeypatch):
    monkeypatch.setattr(confined, "_SECONDS_OF_TEMPLATE", 1.0 if "seconds" in message else 60.0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=message):
        read_prompt("the cat", tokenizer, 51, chat=True)
