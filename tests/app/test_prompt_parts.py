"""Turns of a chat on the pages that have a prompt, run by Streamlit's own test runner on a real checkpoint."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.strings import say
from tests.app.scripts import script

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
DEBUG = script("debug")


@pytest.mark.parametrize(("page", "key"), [("explore", "prompt"), ("debug", "debug prompt")])
def test_turns_are_added_filled_in_and_run(tiny_checkpoint, monkeypatch, page, key):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    app = (AppTest.from_file(MAIN) if page == "explore" else AppTest.from_string(DEBUG)).run(timeout=60)
    app.selectbox(key="checkpoint").set_value("tiny")
    app.text_area(key=key).set_value("the cat")
    app.button(key=f"{key} turn").click().run(timeout=60)
    assert app.text_area(key=key).value == "user:\nthe cat\n\nassistant:\n\n\nuser:\n"
    assert app.toggle(key=key.replace("prompt", "chat")).value
    press(app)
    assert "Turn 2 of the chat, assistant, is empty" in app.error[0].value.replace("\\", "")
    app.text_area(key=key).set_value("user:\nthe cat\n\nassistant:\nsat\n\nuser:\non the mat")
    press(app)
    assert not app.error and not app.exception
    assert app.session_state["session"].run().trace.prompt.text == "<user>the cat<model>"  # all that its template takes


def press(app):
    next(button for button in app.button if button.label == say("run")).click().run(timeout=60)


@pytest.mark.parametrize(("page", "key"), [("explore", "prompt"), ("debug", "debug prompt")])
def test_a_prompt_and_a_chat_are_filled_in_from_a_file(page, key):
    app = (AppTest.from_file(MAIN) if page == "explore" else AppTest.from_string(DEBUG)).run(timeout=60)
    chat = key.replace("prompt", "chat")

    def upload(name, content):
        app.file_uploader(key=f"{key} file").upload(name, content, "text/plain").run(timeout=60)

    upload("a.txt", "Gate **4** é".encode())
    assert (app.text_area(key=key).value, app.toggle(key=chat).value) == ("Gate **4** é", False)
    messages = b'[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]'
    upload("a.json", messages)
    assert (app.text_area(key=key).value, app.toggle(key=chat).value) == ("system:\nBe brief.\n\nuser:\nhi", True)
    upload("b.json", b"[1]")
    assert "Message 1 of the file has the role None" in app.error[0].value.replace("\\", "")
    assert app.text_area(key=key).value.startswith("system:"), "what was there stays"
    upload("empty.txt", b"")
    assert "The file holds no text" in app.error[0].value and app.text_area(key=key).value.startswith("system:")
    upload("c.txt", b"hi")
    assert not app.error and app.text_area(key=key).value == "hi"


def test_files_are_not_taken_where_uploads_are_switched_off(monkeypatch):
    monkeypatch.setenv("SUBLLM_FEATURES", "none")
    app = AppTest.from_file(MAIN).run(timeout=60)
    assert app.button(key="prompt turn") and not app.file_uploader
