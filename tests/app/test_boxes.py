"""Selectors and tabs with labels in the visitor's language: a choice survives a switch of it, also in a form."""

import pytest
from streamlit.testing.v1 import AppTest

PAGE = """
import streamlit as st

from app.strings import language
from app.views.boxes import chosen_in, in_tabs, one_of, several_of
from app.views.chooser import language_switch

NAMES = {"en": {1: "one", 2: "two", 3: "three"}, "zh": {1: "一", 2: "二", 3: "三"}}


def sent():
    st.session_state["sent"] = chosen_in("number")


language_switch()
names = NAMES[language()].__getitem__
if st.checkbox("here", True):
    one_of("plain", [1, 2, 3], names, "plain", default=1)
    with st.form("form"):
        one_of("number", [1, 2, 3], names, "number", default=1)
        st.form_submit_button("send", on_click=sent)
    st.session_state["found"] = several_of("several", [1, 2, 3], names, "several", default=[1])
    in_tabs({name: (names(name), lambda name=name: st.write(f"view {name}")) for name in NAMES["en"]}, "tabs")
"""


@pytest.fixture
def page():
    app = AppTest.from_string(PAGE, default_timeout=60).run()
    assert not app.exception
    return app


def switch(page, to):
    page.selectbox(key="language").set_value(to).run()
    assert not page.exception


def test_a_choice_survives_a_switch_of_the_language_and_back(page):
    page.selectbox(key="plain").set_value(3).run()
    page.multiselect(key="several").set_value([2, 3]).run()
    switch(page, "zh")
    assert page.selectbox(key="plain zh").value == 3 and page.session_state["found"] == [2, 3]
    page.selectbox(key="plain zh").set_value(1).run()
    switch(page, "en")
    assert page.selectbox(key="plain").value == 1 and page.session_state["found"] == [2, 3]


def test_a_form_that_is_sent_after_a_switch_has_values_and_not_labels(page):
    switch(page, "zh")
    page.selectbox(key="number zh").set_value(3)
    page.button[0].click().run()
    assert not page.exception and page.session_state["sent"] == 3


def test_a_choice_stays_while_another_page_is_visited(page):
    page.selectbox(key="plain").set_value(3).run()
    page.checkbox[0].set_value(False).run()
    page.checkbox[0].set_value(True).run()
    assert page.selectbox(key="plain").value == 3


def test_the_open_tab_stays_open_in_another_language_and_after_another_page(page):
    def drawn():
        return [each.value for each in page.markdown]

    assert drawn() == ["view 1"]
    page.session_state["tabs"] = "two"
    page.run()
    assert drawn() == ["view 2"]
    switch(page, "zh")
    assert drawn() == ["view 2"] and page.session_state["tabs"] == "二"
    page.checkbox[0].set_value(False).run()
    page.checkbox[0].set_value(True).run()
    assert drawn() == ["view 2"]
