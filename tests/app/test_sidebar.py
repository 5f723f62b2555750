"""Which page has which selectors, and who may use them."""

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.settings import Settings
from app.views import chooser
from tests.app.scripts import MODULES, script

MODEL = ["checkpoint", "device", "dtype"]
LANGUAGE = ["language"]


def selectors(page):
    """Keys of the shared selectors, in their order."""
    assert not page.exception and not page.error
    return [box.key for box in page.sidebar.selectbox if box.key in MODEL + LANGUAGE]


@pytest.mark.parametrize("shown_as", ["page", "frame", "pinned"])
@pytest.mark.parametrize("name", MODULES)
def test_frames_and_teachers_hide_the_selectors_where_they_show_a_run_alone(name, shown_as, monkeypatch):
    page = AppTest.from_string(script(name), default_timeout=60)
    if shown_as == "frame":
        monkeypatch.setattr("streamlit.runtime.context.ContextProxy.is_embedded", property(lambda self: True))
    elif shown_as == "pinned":
        page.query_params.update({"lesson": "grid", "pin": "1"})
    page.run()
    usual = LANGUAGE if name == "watch" else MODEL + LANGUAGE
    hidden = {"page": (), "frame": ("explore", "debug"), "pinned": ("explore",)}[shown_as]
    assert selectors(page) == ([] if name in hidden else usual)
    if name == "debug":
        assert bool(page.text_area) == (shown_as != "frame")


def test_where_devices_are_not_to_be_chosen_neither_is_their_precision(monkeypatch):
    def chosen(profile):
        monkeypatch.setenv("SUBLLM_PROFILE", profile)
        return chooser.chosen(Settings.read())

    monkeypatch.setattr(st, "session_state", {"device": "cpu", "dtype": "bfloat16", "checkpoint": "mine"})
    assert chosen("private") == chooser.Choice("mine", "cpu", "bfloat16")
    assert chosen("public") == chooser.Choice("mine", "cpu", "float32")
    st.session_state["device"] = "gone"
    assert chosen("private").device == "cpu"


@pytest.mark.parametrize("name", ["explore", "debug"])
def test_a_run_of_the_page_sets_no_value_that_is_set_already(name, tiny_checkpoint, monkeypatch):
    """A browser would take it in place of what was chosen meanwhile."""
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_string(script(name), default_timeout=60)
    page.query_params.update({"v": "2", "prompt": "the cat sat on the mat", "checkpoint": "tiny"})
    page.run()
    page.run()  # the first one begins with values
    assert not page.exception and not page.error
    widgets = [*page.selectbox, *page.slider, *page.toggle, *page.text_area, *page.number_input, *page.radio]
    assert len(widgets) > 5
    assert [widget.key or widget.label for widget in widgets if widget.proto.set_value] == []
