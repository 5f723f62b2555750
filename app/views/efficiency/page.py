"""What dropped tokens save, measured on this machine and predicted for others; the two are never mixed."""

from functools import partial

import streamlit as st

from analysis import AnalysisError
from app.messages import ProgressBar, plain, show_error
from app.settings import Settings
from app.strings import say
from app.views import boxes, chooser
from app.views.chooser import Choice
from app.views.efficiency import measured, predicted
from app.visitors import working
from subllm import SubllmConfig, SubllmError


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("efficiency_title"))
    st.write(say("efficiency_intro"))
    choice = chooser.chosen(settings)
    tabs = {"measured": (say("measured_tab"), measured.show), "predicted": (say("predicted_tab"), _predicted)}
    boxes.in_tabs(
        {name: (label, partial(view, settings, choice)) for name, (label, view) in tabs.items()}, "efficiency"
    )


def _predicted(settings: Settings, choice: Choice) -> None:
    config = _configuration(settings, choice.checkpoint)
    if config is not None:
        predicted.show(config, choice.checkpoint, settings)


def _configuration(settings: Settings, checkpoint: str) -> SubllmConfig | None:
    """A checkpoint's configuration; None, with a button on the page, if it has to be downloaded first."""
    config = settings.configuration(checkpoint)
    if config is not None:
        return config
    st.info(plain(say("fetch_first", name=checkpoint)), icon=":material/cloud_download:")
    pressed = st.button(say("fetch"), type="primary", icon=":material/download:")
    progress = ProgressBar()
    if pressed:
        try:
            with working("download", settings, progress) as work:
                settings.locate(checkpoint, work)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
        else:
            st.rerun()
    return None
