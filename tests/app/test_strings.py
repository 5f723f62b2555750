"""The words on screen: what the code says is in the table, and the table holds nothing else."""

import ast
import json
import re
from pathlib import Path

import pytest

import app
from analysis.figures.trace import ENGLISH
from app.strings import LANGUAGES, table

APP = Path(app.__file__).parent
CODE, SCRIPTS = [*APP.rglob("*.py")], [*APP.rglob("*.js"), *APP.rglob("*.html")]


def calls(name):
    """Calls of a function in the app, and where they are."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node, f"{path.name}, line {node.lineno}"


def texts():
    """Every piece of text in the app's code: whole strings, and the beginnings of formatted ones."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
                yield f"{node.values[0].value}*"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_said_has_the_placeholders_that_it_is_given(language):
    words, checked = table(language), 0
    for call, where in calls("say"):
        first = call.args[0]
        if isinstance(first, ast.Constant) and all(keyword.arg for keyword in call.keywords):
            expected = {keyword.arg for keyword in call.keywords}
            assert {*re.findall(r"{(\w+)}", words[first.value])} == expected, f"{first.value!r} in {where}"
            checked += 1
    assert checked > 200


def test_no_string_is_in_the_table_twice():
    twice = []

    def pairs(found):
        names = [name for name, _ in found]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(found)

    json.loads((APP.parent / "assets" / "strings.json").read_text(encoding="utf-8"), object_pairs_hook=pairs)
    assert not twice


def test_nothing_in_the_table_is_never_said():
    whole = {*texts(), *ENGLISH}
    beginnings = tuple(each[:-1] for each in whole if each.endswith("*") and re.fullmatch(r"[a-z]+_.*\*", each))
    browser = tuple(f"view_{name}" for name in re.findall(r"\w+", "".join(map(Path.read_text, SCRIPTS))))
    unused = [key for key in table("en") if key not in whole and not key.startswith(beginnings) and key not in browser]
    assert not unused
