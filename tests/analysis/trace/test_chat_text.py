"""Chats that a person writes, and prompts in files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.commands import trace as command
from analysis.trace.chat_text import MOST_BYTES, prompt_in_file, text_of_turns, with_turn, written_turns
from analysis.trace.tokenize import read_prompt
from subllm import PromptError
from tests.conftest import byte_tokenizer, run_command

CHAT = [
    {"role": "system", "content": "Be brief.\n\nAnd kind."},
    {"role": "user", "content": "the user: asks\n user:"},
    {"role": "assistant", "content": "Gate 4."},
    {"role": "user", "content": "When?"},
]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"


def test_turns_are_written_and_read_back():
    assert written_turns(text_of_turns(CHAT)) == CHAT
    assert written_turns("Which gate?\r\nassistant: \r\nGate 4.\r\nuser:\r\nWhen?\r\n")[1:] == CHAT[2:]


@given(st.text())
def test_a_text_without_marks_is_one_turn_and_stays_as_it_is(text):
    if any(line.strip("\t\r ") in ("system:", "user:", "assistant:") for line in text.split("\n")):
        return
    assert written_turns(text) == [{"role": "user", "content": text}]


def test_turns_that_no_model_can_answer_are_refused():
    for text, said in (
        ("user:\nhi\nassistant:\n\nuser:\nand?", "Turn 2 of the chat, assistant, is empty"),
        ("user:\nhi\nassistant:\nhello", "ends with a turn of assistant"),
        (with_turn("hi"), "Turn 2 of the chat, assistant, is empty"),
    ):
        with pytest.raises(PromptError, match=said):
            written_turns(text)
    with pytest.raises(PromptError, match="says only 'user:'"):
        text_of_turns([{"role": "user", "content": "a\nuser:\nb"}])


def test_more_turns_follow_those_that_are_there():
    filled = with_turn("hi").replace("assistant:\n", "assistant:\nhello") + "and?"
    assert [turn["content"] for turn in written_turns(filled)] == ["hi", "hello", "and?"]
    again = with_turn(filled).replace("assistant:\n\n", "assistant:\nyes\n") + "why?"
    assert [turn["content"] for turn in written_turns(again)] == ["hi", "hello", "and?", "yes", "why?"]


def test_the_template_gets_every_turn():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    text = "".join(f"<{turn['role']}>{turn['content']}" for turn in CHAT) + "<model>"
    assert read_prompt(text_of_turns(CHAT), tokenizer, 512, chat=True).text == text
    written = read_prompt(text_of_turns(CHAT), tokenizer, 512, chat=True, system="Other.").text
    assert written == text, "the text's own system turn stands"
    assert read_prompt("hi", tokenizer, 512, chat=True, system="Other.").text == "<system>Other.<user>hi<model>"
    assert read_prompt(text_of_turns(CHAT), tokenizer, 512).text == text_of_turns(CHAT)


def test_a_file_holds_text_or_the_messages_of_a_chat():
    assert prompt_in_file("a.txt", "\ufeffuser: é".encode()) == ("user: é", False)
    for content in (CHAT, {"model": "x", "messages": CHAT}):
        text, chat = prompt_in_file("CHAT.JSON", json.dumps(content).encode())
        assert chat and written_turns(text) == CHAT
    parts = [{**turn, "content": [{"type": "text", "text": each} for each in turn["content"]]} for turn in CHAT]
    assert prompt_in_file("parts.json", json.dumps(parts).encode()) == (text, True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"a" * (MOST_BYTES + 1), "at most 1,048,576"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b"[]", "holds no messages"),
        ("a.json", b'{"messages": "hi"}', "holds no messages"),
        ("a.json", b'[{"role": "user", "content": "hi"}, 7]', "Message 2 of the file has the role None"),
        ("a.json", b'[{"role": "tool", "content": "hi"}]', "has the role 'tool'"),
        ("a.json", b'[{"role": "user"}]', "Message 1 of the file has the content None"),
        ("a.json", b'[{"role": "user", "content": ["hi"]}]', r"has the content \['hi'\]; it must be text"),
        (
            "a.json",
            b'[{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]',
            "has the content .*image_url",
        ),
        ("a.json", b'[{"role": "user", "content": [{"type": "text", "text": 7}]}]', "has the content .*7"),
        ("a.txt", b"", "holds no text"),
        ("a.json", b" \n", "holds no text"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused_in_a_sentence(name, content, said):
    with pytest.raises(PromptError, match=said):
        prompt_in_file(name, content)


def test_commands_read_a_chat_from_a_file(tiny_checkpoint, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": "the cat"}]))
    options = ("--checkpoint", tiny_checkpoint, "--device", "cpu", "--dtype", "float32")
    done = run_command(command.main, *options, "--prompt-file", tmp_path / "chat.json")
    assert done.returncode == 0, done.stderr
    same = run_command(command.main, *options, "--prompt", "the cat", "--chat")
    assert done.stdout == same.stdout
    (tmp_path / "bad.json").write_text("{}")
    refused = run_command(command.main, *options, "--prompt-file", tmp_path / "bad.json")
    assert refused.returncode == 1 and "holds no messages" in refused.stderr
