"""The choices that all pages share: checkpoint, device, dtype, language."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import streamlit as st

from analysis.guard import Progress
from app import engine
from app.settings import SHIPPED, Settings
from app.state import Form
from app.strings import LANGUAGES, language, name_of, say
from subllm.assets import ASSETS

_PROMPTS = ASSETS / "prompts.json"


@cache
def examples() -> dict[str, dict[str, Any]]:
    """Prompts to begin with, by name."""
    return {entry["name"]: entry for entry in json.loads(_PROMPTS.read_text(encoding="utf-8"))}


def first_form() -> Form:
    """The prompt's form as it is before anybody has filled it in."""
    first = next(iter(examples().values()))
    return Form(first["text"], first["chat"], first["name"])


@dataclass(frozen=True)
class Choice:
    """What a visitor chose.

    Attributes:
        checkpoint: id, as `Settings.locate` takes it.
        device: one of `engine.devices`.
        dtype: one of `engine.dtypes`.
    """

    checkpoint: str
    device: str
    dtype: str

    def locate(self, settings: Settings, progress: Progress) -> engine.ModelSpec:
        """The model, built or downloaded if need be; see `Settings.locate`."""
        folder = settings.locate(self.checkpoint, progress)
        return engine.ModelSpec(self.checkpoint, folder, self.device, self.dtype)


def model(settings: Settings) -> Choice:
    """Selectors of checkpoint, device and dtype."""
    choices = settings.choices()
    typed = st.session_state.get("checkpoint")
    if typed is not None:
        st.session_state["checkpoint"] = typed = _id(typed)
        if typed not in choices:
            choices.append(typed)  # typed, or from a link
    choice = st.selectbox(
        say("checkpoint"),
        choices,
        key="checkpoint",
        format_func=name_of,
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
    return Choice(_id(choice or choices[0]), device, dtype)


def _id(typed: str) -> str:
    """The checkpoint that was chosen by its name in some language: a browser sends the name that it shows."""
    return next((each for each in SHIPPED for other in LANGUAGES if typed == name_of(each, other)), typed)


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
