"""The words beside things on a page, and the things."""

import re
from pathlib import Path

import app
from app.components.orientation import steps
from app.strings import LANGUAGES, table

VIEWS = "\n".join(path.read_text() for path in Path(app.__file__).parent.rglob("views/**/*.py"))


def test_every_page_but_the_lessons_has_three_or_four_steps_about_things_that_are_there():
    assert {"corpus", "debug", "efficiency", "watch"} <= steps().keys()
    for page, shown in steps().items():
        assert 3 <= len(shown) <= 4, page
        for step in shown:
            assert f'"{step["target"]}"' in VIEWS, step["target"]
            assert step["text"].keys() == LANGUAGES.keys()


def test_a_name_in_quotes_is_what_the_page_calls_the_thing_in_that_language():
    checked = 0
    for shown in steps().values():
        for step in shown:
            for language, text in step["text"].items():
                named = {*re.findall("“([^”]*)”", text)}
                assert named <= {*table(language).values()}, text
                checked += len(named)
    assert checked >= 3
