"""The words on screen, in the language that the user chose; all of them are in `assets/strings.json`."""

import json
from functools import cache
from pathlib import Path

import streamlit as st

LANGUAGES = {"en": "English", "zh": "中文"}
_FILE = Path(__file__).parents[1] / "assets" / "strings.json"


@cache
def table(language: str) -> dict[str, str]:
    """All strings of a language, by key.

    Args:
        language: a key of `LANGUAGES`.
    """
    return {key: entry[language] for key, entry in json.loads(_FILE.read_text(encoding="utf-8")).items()}


def language() -> str:
    """What the user chose, or the browser's language where it is one of ours, or English."""
    chosen = st.session_state.get("language") or st.query_params.get("lang") or (st.context.locale or "en")[:2]
    return chosen if chosen in LANGUAGES else "en"


def say(key: str, **values: object) -> str:
    """A string in the user's language.

    Args:
        key: in the table.
        **values: for its placeholders.
    """
    return table(language())[key].format(**values) if values else table(language())[key]
