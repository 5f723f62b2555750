"""The log: one line for each record, whatever is in it, and no text of a visitor's."""

import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app import log
from app.log import Formatter, level, printable
from subllm import ConfigurationError
from tests.app.scripts import script
from tests.architecture import ROOT


def formatted(message, *values, error=None):
    info = None if error is None else (type(error), error, error.__traceback__)
    return Formatter().format(logging.LogRecord("app", logging.ERROR, "file", 1, message, values, info))


@given(st.text(st.characters(exclude_categories=())))
def test_a_record_is_one_line_of_characters_that_a_terminal_only_shows(text):
    line = formatted("%s", text)
    assert line.isprintable()
    line.encode()


def test_what_can_be_shown_is_left_as_it_is():
    assert printable("a\n\x1b[31mb\ud800 猫\N{CAT FACE}") == "a\\n\\x1b[31mb\\ud800 猫\N{CAT FACE}"


def test_an_exception_is_logged_with_its_code_and_without_its_message():
    try:
        try:
            raise KeyError("my secret")
        except KeyError as error:
            raise ValueError("my secret\n2026-01-01 ERROR app: forged") from error
    except ValueError:
        text = formatted("A page failed", error=sys.exc_info()[1])
    first, *lines = text.splitlines()
    assert first.endswith("ERROR app: A page failed") and all(line.startswith("  ") for line in lines)
    assert "  ValueError" in lines and "  KeyError" in lines and "test_log.py" in text
    assert "\n2026" not in text


@pytest.mark.parametrize(
    ("variables", "found"),
    [({}, "WARNING"), ({"SUBLLM_PROFILE": "public"}, "INFO"), ({"SUBLLM_LOG_LEVEL": "debug"}, "DEBUG")],
)
def test_the_level_follows_the_profile_and_can_be_chosen(variables, found):
    assert logging.getLevelName(level(variables)) == found
    with pytest.raises(ConfigurationError, match="LOUD"):
        level({"SUBLLM_LOG_LEVEL": "LOUD"})


def test_the_line_in_the_documents_is_one_that_an_action_leaves(tiny_checkpoint, monkeypatch, caplog):
    shown = f"{log.__doc__}{(ROOT / 'docs' / 'hosting.md').read_text()}"
    samples = re.findall("INFO app: (.*)", shown)
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    caplog.set_level(logging.INFO, "app")
    page = AppTest.from_string(script("explore"), default_timeout=60)
    page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": "no other test runs this cat"})
    page.run()  # a run that was made before would count no tokens
    assert not page.exception and not page.error
    left = [record.getMessage() for record in caplog.records if record.name == "app"]
    counted = [re.sub(r"\d+", "N", line) for line in left if not re.search(r"\b0 tokens", line)]
    assert len(samples) == 2 and {re.sub(r"\d+", "N", sample) for sample in samples} <= {*counted}
