"""The tab Patching, run by Streamlit's own test runner on a real checkpoint."""

import pytest
from streamlit.testing.v1 import AppTest

from app.strings import say
from tests.app.scripts import script

SCRIPT = script("debug")
TEXT, OTHER = "the cat sat on the mat and then", "the dog sat on the mat and then"


@pytest.fixture
def opened(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))

    def page(**query):
        app = AppTest.from_string(SCRIPT, default_timeout=60)
        app.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "answer": " sat"} | query)
        app.session_state["debug"] = say("tab_patching")
        app.run()
        assert not app.exception
        return app

    return page


def patch(page, other):
    page.text_area(key="patch other").set_value(other)
    next(button for button in page.button if button.label == say("patch_run")).click().run()
    assert not page.exception


def test_a_state_is_put_in_before_every_level_and_what_follows_is_shown(opened):
    page = opened(selected="1", level="1")
    patch(page, OTHER)
    assert not page.error
    table = page.dataframe[0].value
    assert table[say("edit_level")].tolist()[0] == "Level 1" and 0 < table[say("number_answer")][0] < 1
    said = [text.value.replace("\\", "") for text in page.markdown]
    assert "**With the state of ' dog', token 1 of the other prompt**" in said
    assert "**The run with the state put in before Level 1**" in said


def test_what_cannot_be_patched_is_said_in_a_sentence(opened):
    assert say("why_select") in [text.value for text in opened().info]
    page = opened(selected="1")
    patch(page, "")
    assert "is empty" in page.error[0].value
    page.number_input(key="patch source 1").set_value(500)
    patch(page, OTHER)
    assert "There is no token 500" in page.error[0].value
