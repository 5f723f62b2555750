"""A real server and a real Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def server(tiny_checkpoint, tmp_path_factory):
    """Address of the app, with the tiny checkpoint to choose; its output is shown if it dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {
        "SUBLLM_ROOTS": str(tiny_checkpoint.parent),
        "SUBLLM_HOME": str(tmp_path_factory.mktemp("home")),
        "SUBLLM_MAX_TOKENS": "400",
    }
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"The server did not start:\n{log.read_text()}")
            time.sleep(0.1)  # between two attempts to reach it
    yield address
    alive = process.poll() is None
    process.terminate()
    process.wait()
    assert alive, f"The server died:\n{log.read_text()}"
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def browser():
    executable = shutil.which("chromium") or pytest.fail("chromium is not installed; run: make chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures():
    """Folder for screenshots, to be looked at."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser, server):
    """The app's first page, ready for a prompt, with the tiny checkpoint chosen."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(server)
    page.get_by_role("button", name="Run").wait_for()
    page.get_by_role("combobox", name="Checkpoint").click()
    page.get_by_role("option", name="tiny").click()
    yield page
    assert page.faults == []
    context.close()
