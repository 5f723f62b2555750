"""The text on screen, in the language that the user chose; all of it is in `assets/strings.json`.

An entry holds the text per language, with `str.format` placeholders. Where a language has a singular, the entry holds
`{"one": ..., "other": ...}`, and the placeholder `n` decides.
"""

import json
from functools import cache

import streamlit as st

from subllm.assets import ASSETS

LANGUAGES = {"en": "English", "zh": "中文"}
_FILE = ASSETS / "strings.json"
_SINGULAR = "{} one"  # key of a singular in a table


@cache
def table(language: str) -> dict[str, str]:
    """All strings of one language of `LANGUAGES`, by key; a singular has the key followed by " one"."""
    found: dict[str, str] = {}
    for key, entry in json.loads(_FILE.read_text(encoding="utf-8")).items():
        forms = entry[language]
        if isinstance(forms, dict):
            found[_SINGULAR.format(key)] = forms["one"]
            forms = forms["other"]
        found[key] = forms
    return found


def language() -> str:
    """The language that the user chose, or the browser's if it is one of ours, or English."""
    chosen = st.session_state.get("language") or st.query_params.get("lang") or (st.context.locale or "en")[:2]
    return chosen if chosen in LANGUAGES else "en"


def say(key: str, **values: object) -> str:
    """A string in the user's language.

    Args:
        key: of the string.
        **values: for its placeholders; `n`, a number or a formatted number, chooses between singular and plural.
    """
    words = table(language())
    singular = _SINGULAR.format(key)
    text = words[singular if str(values.get("n")) == "1" and singular in words else key]
    return text.format(**values) if values else text
