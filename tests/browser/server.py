"""The app in a process of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "streamlit", "run", "app/main.py"]
PATIENCE = 300  # seconds: on a busy machine, a server that has just started is slow
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def executable() -> str:
    """Path of Chromium.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    found = shutil.which("chromium")
    if found is None:
        raise FileNotFoundError("chromium is not installed; run: make chromium")
    return found


@contextmanager
def serve(
    log: Path, variables: Mapping[str, str], command: Sequence[str] = COMMAND, folder: Path = ROOT
) -> Iterator[str]:
    """Start the app on a free port; its address. If it dies, its output is in the error.

    Args:
        log: file for its output.
        variables: of its environment.
        command: that starts it; PORT in its environment is the port.
        folder: that it is started from.
    """
    with socket.socket() as held:  # until the end, or another program could be given the port before the app has it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        environment = os.environ | {"PORT": str(port), "STREAMLIT_SERVER_PORT": str(port)} | variables
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                        break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, f"No server:\n{log.read_text()}"
                    time.sleep(0.1)  # between two attempts to reach it
            yield address
            assert process.poll() is None, f"The server died:\n{log.read_text()}"
        finally:
            process.terminate()
            process.wait()
