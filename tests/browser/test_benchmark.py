"""The measurement of the page in a browser still finds what it measures."""

import re
import sys

import pytest

from tests.benchmarks import browser as benchmark


@pytest.mark.slow
def test_the_page_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--lengths", "64", "--repeats", "2"])
    assert benchmark.main() == 0
    assert re.search(r"\| 64 \| [\d,]+ \([\d,]+ – [\d,]+\) \| [1-9]", capsys.readouterr().out)
