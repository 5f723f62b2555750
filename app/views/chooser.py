"""The choices that all pages share: checkpoint, device, dtype, language."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any
from unicodedata import east_asian_width

import streamlit as st

from analysis.figures.terms import system_name
from analysis.guard import Progress
from app import engine
from app.limits import Feature
from app.messages import plain, told
from app.settings import SHIPPED, Settings
from app.state import Form
from app.strings import LANGUAGES, language, name_of, say, table
from app.views import boxes
from subllm import SubllmError
from subllm.assets import ASSETS

_PROMPTS = ASSETS / "prompts.json"
_SHOWN = 26  # letters that the selector in the sidebar has room for


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


def chosen(settings: Settings) -> Choice:
    """What was chosen last, by a visitor or by a link; the first of each where nothing was, or it is not to be had."""
    checkpoint, device, dtype = (st.session_state.get(key) for key in ("checkpoint", "device", "dtype"))
    if Feature.DEVICES not in settings.limits.features:
        device = dtype = None
    if device not in engine.devices():
        device = engine.devices()[0]
    dtypes = engine.dtypes(device)
    return Choice(
        _id(checkpoint) if checkpoint else settings.choices()[0], device, dtype if dtype in dtypes else dtypes[0]
    )


def model(settings: Settings) -> None:
    """Selectors of checkpoint, device and dtype."""
    choices = settings.choices()
    typed = st.session_state.get("checkpoint")
    if typed is not None:
        known = _id(typed)
        if known not in choices and Feature.FOLDERS in settings.limits.features:
            choices.append(known)  # typed, or from a link
        boxes.put("checkpoint", known if known in choices else choices[0])
    choice = st.selectbox(
        say("checkpoint"),
        choices,
        key="checkpoint",
        format_func=name_of,
        accept_new_options=Feature.FOLDERS in settings.limits.features,
        help=say("checkpoint_help"),
        persist_state="session",
    )
    checkpoint = _id(choice or choices[0])
    if _width(name_of(checkpoint)) > _SHOWN:  # the selector cuts it off
        st.caption(plain(name_of(checkpoint)))
    _system(settings, checkpoint)
    if Feature.DEVICES in settings.limits.features:
        dtypes = engine.dtypes(_device())
        st.selectbox(say("dtype"), dtypes, key="dtype", help=say("dtype_help"), persist_state="session")


def _width(text: str) -> int:
    """Width of a text in Latin letters."""
    return sum(1 + (east_asian_width(character) in "WF") for character in text)


def _system(settings: Settings, checkpoint: str) -> None:
    """Say which routers a checkpoint has; nothing where it cannot be read, which a run says."""
    try:
        config = settings.configuration(checkpoint)
    except SubllmError:
        return
    if config is not None:
        system = system_name(config.routers, table(language()))
        st.caption(plain(say("labelled", label=say("checkpoint_router"), value=system)))


def _device() -> str:
    """Selector of the device, and what is wrong with devices that cannot be chosen."""
    devices = engine.devices()
    asked = st.session_state.get("device", devices[0])
    if asked not in devices:  # of a session that began on another machine
        st.session_state["device"] = devices[0]
    device = st.selectbox(
        say("device"),
        devices,
        key="device",
        format_func=engine.device_label,
        help=say("device_help"),
        persist_state="session",
    )
    if asked not in devices:
        st.warning(plain(say("device_gone", asked=asked, device=engine.device_label(device))))
    for fault in engine.device_faults():
        st.caption(plain(told(fault)))
    return device


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
