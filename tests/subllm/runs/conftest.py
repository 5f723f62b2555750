"""A small training, and disks that are full soon."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder, to be damaged."""
    return shutil.copytree(finished, tmp_path / "copy")


@contextmanager
def small_disk(folder, kilobytes):
    """A folder on a disk of its own, which can be made larger; skips where no disk can be mounted."""
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("this user may not mount a file system, so no small disk can be made")

    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("there is no 'mount' here, so no small disk can be made")
    mount(f"size={kilobytes}k")
    try:
        yield lambda more: mount(f"remount,size={more}k")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
