"""The choices that all pages share: checkpoint, device, number format, language."""

import json
from functools import cache
from typing import Any

import streamlit as st

from app import engine
from app.settings import Settings
from app.strings import LANGUAGES, language, say
from subllm.assets import ASSETS

_PROMPTS = ASSETS / "prompts.json"


@cache
def examples() -> dict[str, dict[str, Any]]:
    """Prompts to begin with, by name."""
    return {entry["name"]: entry for entry in json.loads(_PROMPTS.read_text(encoding="utf-8"))}


def checkpoint(settings: Settings) -> tuple[str, str, str]:
    """Selectors of checkpoint, device and dtype; what was chosen.

    Args:
        settings: what the operator allows.
    """
    choices = settings.choices()
    if st.session_state.get("checkpoint") not in (None, *choices):
        choices.append(st.session_state["checkpoint"])  # typed, or from a link
    choice = st.selectbox(
        say("checkpoint"),
        choices,
        key="checkpoint",
        accept_new_options=True,
        help=say("checkpoint_help"),
        persist_state="session",
    )
    device = st.selectbox(
        say("device"), engine.devices(), key="device", help=say("device_help"), persist_state="session"
    )
    dtype = st.selectbox(
        say("dtype"), engine.dtypes(device), key="dtype", help=say("dtype_help"), persist_state="session"
    )
    return choice or choices[0], device, dtype


def language_switch() -> None:
    """Selector of the language."""
    st.session_state.setdefault("language", language())
    st.selectbox(
        say("language"),
        list(LANGUAGES),
        format_func=LANGUAGES.__getitem__,
        key="language",
        persist_state="session",
    )
