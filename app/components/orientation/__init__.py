"""A button that shows a person around a page: words beside one thing after another, from `assets/orientation.json`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.figures.modules import join
from app.strings import language, say
from subllm.assets import ASSETS

_FOLDER = Path(__file__).parent
_CSS = (_FOLDER / "view.css").read_text(encoding="utf-8")
_JS = join(_FOLDER / "view.js")
_WORDS = ("start", "back", "next", "close", "done", "count")


@cache
def steps() -> dict[str, list[dict[str, Any]]]:
    """What each page shows, by its path: the key of an element, maybe a part of it, and a text in each language."""
    found: dict[str, list[dict[str, Any]]] = json.loads((ASSETS / "orientation.json").read_text(encoding="utf-8"))
    return found


def offer(page: str) -> None:
    """The button, if there is something to show.

    Args:
        page: path of the page.
    """
    if page not in steps():
        return
    shown = [
        {
            "targets": [step["target"], f"{step['target']} {language()}"],  # as `boxes` name selectors
            "part": step.get("part", ""),
            "text": step["text"][language()],
        }
        for step in steps()[page]
    ]
    data = {"steps": shown, "words": {name: say(f"orientation_{name}") for name in _WORDS}, "css": _CSS}
    component = st.components.v2.component("subllm_orientation", css=_CSS, js=_JS)
    component(data=data, key=f"orientation {page}", height="content")
