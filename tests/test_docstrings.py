"""Examples in docstrings do what they say."""

import doctest
import importlib

import pytest

from tests.architecture import PACKAGES, ROOT

EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert {"analysis.run", "subllm.structure"} <= {*EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
