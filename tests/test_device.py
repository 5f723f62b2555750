"""The tests on a pretend accelerator, in processes of their own: torch takes a new device before its first backward."""

import os
import subprocess
import sys

from tests.browser.server import ROOT

LONGEST = "tests/device/test_launches.py"


def test_the_model_on_a_pretend_accelerator():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    halves = [
        subprocess.Popen(
            [*command, *part], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for part in ([LONGEST], ["tests/device", f"--ignore={LONGEST}"])
    ]
    for half in halves:
        said, _ = half.communicate()
        assert not half.returncode, said
