"""The server has the same limits however it is started."""

import os
import tomllib
from pathlib import Path

import pytest

from app import serve
from app.serve import _OPTIONS

APP = Path(serve.__file__).parent


def test_streamlit_finds_the_options_that_our_command_gives_it():
    """It looks beside the script, from whatever folder it is started."""
    tables = tomllib.loads((APP / ".streamlit" / "config.toml").read_text())
    flat = {}
    for section, values in tables.items():
        for name, value in values.items():
            nested = value.items() if isinstance(value, dict) else [("", value)]
            for key, each in nested:
                text = str(each).lower() if isinstance(each, bool) else str(each)
                flat[".".join(filter(None, (section, name, key)))] = text
    assert flat.items() >= _OPTIONS.items()
    assert {"server.maxUploadSize", "server.maxMessageSize", "server.enableCORS", "server.enableXsrfProtection"} <= {
        *_OPTIONS
    }
    assert flat["server.address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "profile", "warned"),
    [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "class", False)],
)
def test_an_address_that_others_can_reach_is_said_unless_a_profile_was_chosen(
    address, profile, warned, monkeypatch, capsys
):
    started = []
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("SUBLLM_PROFILE", raising=False)
    if profile is not None:
        monkeypatch.setenv("SUBLLM_PROFILE", profile)
    serve.main(["--address", address, "--no-browser"])
    assert len(started) == 1
    assert ("SUBLLM_PROFILE=public" in capsys.readouterr().err) == warned
