"""The tests on a pretend accelerator, in a process of their own: torch takes a new device before its first backward."""

import subprocess
import sys

from tests.browser.server import ROOT


def test_the_model_on_a_pretend_accelerator():
    done = subprocess.run([sys.executable, "-m", "pytest", "tests/device"], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
