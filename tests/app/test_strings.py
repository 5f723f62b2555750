"""The words on screen: what the code says is in the table, and the table holds nothing else."""

import ast
import json
import re
from pathlib import Path

import pytest

from analysis.figures.words import ENGLISH
from app.strings import LANGUAGES, say, table
from tests.architecture import ROOT

VARIANT = re.compile(r"_(?:merging|heavy|none|(?:subllm|mod|stride|colt5)(?:_predictor)?)$")  # analysis.figures.terms
SPEAKING = [ROOT / "app", *(ROOT / "analysis" / room for room in ("figures", "lesson", "report"))]
CODE, SCRIPTS = (
    [path for folder in SPEAKING for kind in kinds for path in folder.rglob(kind)]
    for kinds in (["*.py"], ["*.js", "*.html"])
)


def calls(name):
    """Calls of a function in the code, and where they are."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node, f"{path.name}, line {node.lineno}"


def texts():
    """Every piece of text in the code: whole strings, and the beginnings of formatted ones."""
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


@pytest.mark.parametrize("number", [1, "1"])
def test_one_of_a_thing_is_said_in_the_singular_and_several_in_the_plural(number):
    assert say("steps_rate", n=number, rate="3.0") == "1 token, 3.0 per second"
    assert say("steps_rate", n=11, rate="3.0") == "11 tokens, 3.0 per second"
    assert say("edit_keep", n=number) == "Keep (1)"


def test_both_forms_of_a_string_have_its_number():
    singulars = {key: text for key, text in table("en").items() if key.endswith(" one")}
    assert "steps_rate one" in singulars
    for key, text in singulars.items():
        plural = table("en")[key.removesuffix(" one")]
        assert "{n}" in text and {*re.findall(r"{(\w+)}", text)} == {*re.findall(r"{(\w+)}", plural)}, key


def test_all_languages_have_the_same_placeholders():
    english = table("en")
    for other in map(table, LANGUAGES):
        assert {key for key in english if not key.endswith(" one")} <= {*other}
        for key, text in other.items():
            assert text.strip(), key
            assert {*re.findall(r"{(\w+)}", text)} == {*re.findall(r"{(\w+)}", english[key])}, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_number_before_its_noun_has_a_singular(language):
    """A noun in the plural right after a placeholder that may be 1 is a mistake at 1."""
    never_one = {
        "{limit} tokens",
        "{least} tokens",
        "{tokens} tokens",
        "{training} sequences",
        "{batch} sequences",
    }  # lengths, constants
    for key, text in table(language).items():
        for found in re.findall(
            r"{\w+} (?:new )?(?:tokens|blocks|levels|steps|runs|prompts|sequences|decisions)", text
        ):
            assert found in never_one or f"{key} one" in table(language), f"{key}: {found}"


def test_a_page_has_its_chinese_name_in_chinese():
    pages = [text for key, text in table("en").items() if key.startswith("page_")]
    assert "Explore" in pages
    assert [text for text in table("zh").values() if any(re.search(rf"\b{page}\b", text) for page in pages)] == []


def test_no_string_is_in_the_table_twice():
    twice = []

    def pairs(found):
        names = [name for name, _ in found]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(found)

    json.loads((ROOT / "assets" / "strings.json").read_text(encoding="utf-8"), object_pairs_hook=pairs)
    assert not twice


def test_nothing_in_the_table_is_never_said():
    whole = {*texts(), *ENGLISH}
    beginnings = tuple(each[:-1] for each in whole if each.endswith("*") and re.fullmatch(r"[a-z]+_.*\*", each))
    browser = tuple(f"view_{name}" for name in re.findall(r"\w+", "".join(map(Path.read_text, SCRIPTS))))
    words = table("en")
    keys = {base if (base := VARIANT.sub("", key)) in words else key for key in words if not key.endswith(" one")}
    unused = [key for key in keys if key not in whole and not key.startswith(beginnings) and key not in browser]
    assert not unused


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_a_router_stand_for_others_with_the_same_placeholders(language):
    words, checked = table(language), 0
    for key, text in words.items():
        base = VARIANT.sub("", key)
        if base != key and base in words:
            assert {*re.findall(r"{(\w+)}", text)} <= {*re.findall(r"{(\w+)}", words[base])}, key
            checked += 1
    assert checked > 100
