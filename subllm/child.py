"""Running another program that ends with this process, also if this process is killed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_KEEPER = """
import os, signal, subprocess, sys, threading

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)  # of a terminal that means us as well; what follows counts
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

def watch():
    sys.stdin.buffer.read()  # ends when the process that holds the other end is gone
    os.killpg(child.pid, signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
os._exit(child.wait() & 255)
"""
"""Stands between us and the program: whatever ends us, it is there to end the program and all that it started."""

_PAUSE = 0.3  # seconds between calls of `meanwhile`


def run_child(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> tuple[int, str]:
    """Run a program and wait for it. The program and all that it started end when this process does.

    Args:
        command: the program and its arguments.
        folder: working folder.
        environment: environment variables; by default those of this process.
        meanwhile: called now and then while the program runs, in this thread. What it raises ends the program.

    Returns:
        The exit code, and what was written to standard output and standard error.

    Raises:
        FileNotFoundError: if there is no such program.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(command[0])
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, *command],
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        while True:
            try:
                output = process.communicate(timeout=None if meanwhile is None else _PAUSE)[0]
                break
            except subprocess.TimeoutExpired:
                assert meanwhile is not None
                meanwhile()
    finally:
        os.close(ours)  # an interrupt ends the program as well
        with process:  # waits for its end
            pass
    return process.returncode, output
