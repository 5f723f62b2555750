"""What dropped tokens save: measured on this machine, and predicted for others; the two are never mixed."""

import streamlit as st

from analysis.record import silent
from app.settings import Settings
from app.strings import say
from app.views import chooser, measured, predicted
from subllm.checkpoints import read_config


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("efficiency_title"))
    st.write(say("efficiency_intro"))
    with st.sidebar:
        choice, device, dtype = chooser.checkpoint(settings)
        chooser.language_switch()
    here, what_if = st.tabs([say("measured_tab"), say("predicted_tab")], on_change="rerun", key="efficiency")
    if here.open:
        with here:
            measured.show(settings, choice, device, dtype)
    if what_if.open:
        with what_if:
            predicted.show(read_config(settings.locate(choice, silent)), choice)
