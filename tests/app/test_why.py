"""Why A and not B on the page, run by Streamlit's own test runner on a real checkpoint."""

import pytest
from streamlit.testing.v1 import AppTest

from app.strings import say
from tests.app.scripts import script

SCRIPT = script("debug")
TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture(scope="module")
def opened(tiny_checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
        page = AppTest.from_string(SCRIPT, default_timeout=60)
        page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "selected": "7"})
        page.session_state["debug"] = say("tab_why")
        page.run()
        yield page


def explained(page, instead, *, level=0, answer=""):
    """The page after the form was sent, with the fastest method."""
    what = page.selectbox(key="why what")
    what.set_value(level)
    page.selectbox(key="why method").set_value("input x gradient")
    page.text_input(key="why answer").set_value(answer)
    page.text_input(key="why instead").set_value(instead)
    next(button for button in page.button if button.label == say("why_run")).click().run()
    assert not page.exception
    return [text.value.replace("\\", "") for text in page.markdown]


def test_a_next_token_is_explained_against_another(opened):
    assert "**Why ' cat' and not ' dog'**" in explained(opened, " dog", answer=" cat")
    assert any("difference between the two" in text.value for text in opened.caption)


def test_a_decision_is_explained_against_that_of_another_token(opened):
    assert "**Why ' then' and not ' on'**" in explained(opened, "3", level=1)
    table = opened.dataframe[0].value
    assert table[say("flip_token")].tolist() == [7, 3]
    assert {*table[say("depth_state")]} <= {say("view_keptState"), say("view_droppedState")}


def test_a_contrast_that_cannot_be_made_is_refused_in_a_sentence(opened):
    explained(opened, "dog", level=1)
    assert [text.value.replace("\\", "") for text in opened.error] == [
        "'dog' is not the number of a token. A score is contrasted with that of another token of the prompt: write its "
        "number."
    ]
    explained(opened, "7", level=1)
    assert "contrasted with itself" in opened.error[0].value
