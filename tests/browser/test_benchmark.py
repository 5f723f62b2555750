"""The measurement of the page in a browser still finds what it measures."""

import re
import subprocess
import sys

import pytest

from .server import PATIENCE, ROOT


@pytest.mark.slow
def test_the_page_is_measured():
    command = [sys.executable, "-m", "tests.benchmarks.browser", "--lengths", "64", "--repeats", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\| 64 \| [\d,]+ \([\d,]+ – [\d,]+\) \| [1-9]", ended.stdout)
