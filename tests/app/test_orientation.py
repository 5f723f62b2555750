"""The words beside things on a page, and the things."""

from pathlib import Path

import app
from app.components.orientation import steps
from app.strings import LANGUAGES

VIEWS = "\n".join(path.read_text() for path in Path(app.__file__).parent.rglob("views/**/*.py"))


def test_every_page_but_the_lessons_has_three_or_four_steps_about_things_that_are_there():
    assert {"corpus", "debug", "efficiency", "watch"} <= steps().keys()
    for page, shown in steps().items():
        assert 3 <= len(shown) <= 4, page
        for step in shown:
            assert f'"{step["target"]}"' in VIEWS, step["target"]
            assert step["text"].keys() == LANGUAGES.keys()
