"""Messages of errors in the user's language: every one that reaches the screen has a translation."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import streamlit as st

import analysis
import app
import subllm
from analysis import AnalysisError, RunStopped, errors
from analysis.debug.edits import Edit
from analysis.guard import Limit, silent
from app.messages import show_error
from app.strings import LANGUAGES, explain
from subllm import CheckpointError, PromptTooLongError, SubllmError, parse_structure
from subllm.assets import ASSETS
from subllm.checkpoints.load import load_checkpoint

MESSAGES = json.loads((ASSETS / "messages.json").read_text(encoding="utf-8"))
ROOMS = {  # whose errors a visitor can cause
    Path(app.__file__).parent: ("*.py", "views/**/*.py", "engine/*.py", "components/**/*.py"),
    Path(analysis.__file__).parent: (
        "*.py", "corpus/*.py", "debug/*.py", "training/*.py", "cost/*.py",
        "trace/tokenize.py", "trace/prefill.py", "trace/chat_text.py", "trace/untrusted.py",
        "quality/rivals.py", "lesson/content.py",
    ),
    Path(subllm.__file__).parent: (
        "errors.py", "structure.py", "configuration.py", "demo.py", "runs/routing_snapshot.py", "routing/stride.py",
        *(
            f"checkpoints/{name}.py"
            for name in ("load", "dense", "device", "files", "foreign", "config", "weights", "tokenizer")
        ),
    ),
}  # fmt: skip
FILES = {path for folder, patterns in ROOMS.items() for pattern in patterns for path in folder.glob(pattern)}
COMMANDS_ONLY = {"training_step.py", "command.py", "serve.py", "space.py"}
NAMES = {
    name
    for module in (subllm.errors, errors)
    for name, found in vars(module).items()
    if inspect.isclass(found) and issubclass(found, SubllmError | AnalysisError)
}


_NAMES = [
    ("您", "你"), ("层级", "级"), ("轨迹", "运行文件"), ("对话模板", "聊天模板"), ("对话选项", "使用聊天模板"),
    ("的块", "层"), ("个块", "层"),
]  # fmt: skip


@pytest.mark.parametrize("file", ["strings.json", "messages.json", "lesson.json"])
@pytest.mark.parametrize(("word", "usual"), _NAMES)
def test_a_thing_has_one_name_in_chinese(file, word, usual):
    lines = (ASSETS / file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if word in line] == [], f"{usual} is what it is called elsewhere"


def placeholders(text):
    return {*re.findall(r"{(\w+)", text)}


def raised():
    """Every first argument of an error, and of the message of an error class; and where it stands."""
    for path in sorted(path for path in FILES if path.name not in COMMANDS_ONLY):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else None
            own = path.name == "errors.py" and ast.unparse(node.func) == "super().__init__"
            if name in NAMES or own:
                yield node.args[0], node.keywords, f"{path}:{node.lineno}"


def test_every_message_that_reaches_the_screen_has_a_translation():
    found, checked = {}, 0
    for argument, keywords, where in raised():
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            assert argument.value in MESSAGES, f"{where} has no translation: {argument.value}"
            given = {keyword.arg for keyword in keywords}
            assert placeholders(argument.value) == given, where
            found[argument.value], checked = where, checked + 1
        else:  # numbers of a class with a message of its own, or a message that is passed on
            assert not isinstance(argument, ast.JoinedStr), f"{where} fills in its values before they can be translated"
    assert checked > 80
    sentences = {message for message in MESSAGES if message.endswith((".", "}")) and " " in message}
    assert sentences <= {*found}, f"never raised: {sorted(sentences - {*found})}"


def test_translations_have_the_placeholders_of_their_message():
    for message, entry in MESSAGES.items():
        assert {*entry} == {*LANGUAGES} - {"en"}, message
        for text in entry.values():
            assert placeholders(text) == placeholders(message), message


def caused(what, tmp_path):
    """An error of each class, from the code that raises it."""
    with pytest.raises((SubllmError, AnalysisError)) as caught:
        if what == "structure":
            parse_structure("T(")
        elif what == "edit":
            Edit.parse("drop prompt@1")
        elif what == "time":
            Limit(silent, -1).check()
        elif what == "long":
            raise PromptTooLongError(1234, 512)
        else:
            load_checkpoint(tmp_path / "prompt", "cpu", "float32")
    return caught.value


CHINESE = {
    "structure": "结构 'T(' 在位置 1 的括号没有闭合，请补上缺少的 ')'。",
    "edit": "'prompt' 没有指定词元。",
    "time": "已达到时间限制。请缩短提示词",
    "long": "提示词有 1,234 个词元，而此处最多容纳 512 个。",
    "checkpoint": "不是检查点",
}


@pytest.mark.parametrize("what", CHINESE)
def test_an_error_is_said_in_the_language_of_the_user(what, tmp_path, monkeypatch):
    error = caused(what, tmp_path)
    assert CHINESE[what] not in explain(error) and explain(error) == str(error)
    monkeypatch.setitem(st.session_state, "language", "zh")
    assert CHINESE[what] in explain(error)


def test_an_error_without_a_translation_is_said_in_english(monkeypatch):
    monkeypatch.setitem(st.session_state, "language", "zh")
    assert explain(CheckpointError("{braces} of a file's name")) == "{braces} of a file's name"
    assert explain(RunStopped()) == ""
    assert callable(show_error)
