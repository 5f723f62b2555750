"""Strings on screen and in reports, by key, in each language (`assets/strings.json`)."""

import json
from collections.abc import Mapping
from functools import cache

from .words import Words

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
_SINGULAR = "{} one"  # key of a singular in a table


@cache
def table(language: str) -> dict[str, str]:
    """All strings of one language of `LANGUAGES`, by key; a singular has the key followed by " one"."""
    from subllm.assets import ASSETS  # noqa: PLC0415 - the figures, which need no strings, import without torch

    found: dict[str, str] = {}
    for key, entry in json.loads((ASSETS / "strings.json").read_text(encoding="utf-8")).items():
        forms = entry[language]
        if isinstance(forms, dict):
            found[_SINGULAR.format(key)] = forms["one"]
            forms = forms["other"]
        found[key] = forms
    return found


def spoken(words: Words, key: str, **values: object) -> str:
    """A string with its values filled in.

    Args:
        words: a table of strings.
        key: of the string.
        **values: for its placeholders; `n`, a number or a formatted number, chooses between singular and plural.
    """
    singular = _SINGULAR.format(key)
    text = words[singular if str(values.get("n")) == "1" and singular in words else key]
    return text.format(**values) if values else text
