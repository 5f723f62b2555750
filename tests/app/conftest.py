"""Shared by tests of the app."""

import os
import sys
from pathlib import Path

import pytest

_opened: list[Path] = []
_watching = [False]


def _note(event, arguments):
    if _watching[0] and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(Path(os.fsdecode(arguments[0])))


sys.addaudithook(_note)  # hooks cannot be taken away again


@pytest.fixture
def opened_files():
    """Files opened since the test began, by whichever library; a test may clear the list."""
    _opened.clear()
    _watching[0] = True
    yield _opened
    _watching[0] = False
