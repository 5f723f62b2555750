"""The text on screen, in the language that the user chose.

| file in `assets/` | keys | values, by language |
| --- | --- | --- |
| `strings.json` | names | text, with `str.format` placeholders; `{"one": ..., "other": ...}` where `n` decides |
| `messages.json` | English messages of errors, before their values are filled in | translations, likewise |
"""

import json
from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Any

import streamlit as st

from analysis.figures.strings import LANGUAGES, spoken, table
from subllm.assets import ASSETS


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
    return spoken(table(language()), key, **values)


def name_of(identifier: str, language_: str | None = None) -> str:
    """What something that ships is called; everything else is called what it is.

    Args:
        identifier: of a checkpoint or a training run, as in `app.settings`.
        language_: of the name; the user's if it is None.
    """
    return table(language_ or language()).get(f"name_{identifier}", identifier)


def explain(error: Exception) -> str:
    """What an error says, in the user's language; in English if it has no translation.

    Args:
        error: a `SubllmError` or an `AnalysisError`.
    """
    message, values = getattr(error, "message", ""), getattr(error, "values", {})
    translated = _messages(language()).get(message)
    return str(error) if translated is None else _Translator().vformat(translated, (), values)


@cache
def _messages(language: str) -> Mapping[str, str]:
    entries = json.loads((ASSETS / "messages.json").read_text(encoding="utf-8"))
    return {message: entry[language] for message, entry in entries.items() if language in entry}


class _Translator(Formatter):
    """Also translates values that are errors or words; text that a user wrote is quoted, so it is neither."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Exception):
            value = explain(value)
        elif isinstance(value, str):
            value = _messages(language()).get(value, value)
        return str(super().format_field(value, format_spec))
