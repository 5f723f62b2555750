"""A real server and a real Chromium."""

import os

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.benchmarks.browser import make_checkpoint

from .server import FLAGS, PATIENCE, ROOT, executable, serve
from .waiting import settled

expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="session")
def server(tiny_checkpoint, odd_checkpoints, tmp_path_factory):
    """Address of the app, with the tiny checkpoint and odd ones to choose."""
    log = tmp_path_factory.mktemp("server") / "log"
    make_checkpoint(odd_checkpoints / "long", 8192)
    variables = {
        "SUBLLM_ROOTS": os.pathsep.join([str(tiny_checkpoint.parent), str(odd_checkpoints)]),
        "SUBLLM_HOME": str(tmp_path_factory.mktemp("home")),
        "SUBLLM_MAX_TOKENS": "8192",
    }
    with serve(log, variables) as address:
        yield address
    said = log.read_text()  # a browser that leaves while the server sends makes a traceback that is not ours
    assert "A page failed" not in said, said
    assert "Uncaught app exception" not in said, said


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        chromium.on("context", lambda context: context.set_default_timeout(1000 * PATIENCE))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures():
    """Folder for screenshots, to be looked at."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def tab(browser):
    """An empty page in a browser of its own; a fault of a script on it fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    assert page.faults == []
    context.close()


@pytest.fixture
def page(tab, server):
    """The app's first page, ready for a prompt, with the tiny checkpoint chosen."""
    tab.goto(server)
    tab.get_by_role("button", name="Run", exact=True).wait_for()
    tab.get_by_role("combobox", name="Checkpoint").click()
    tab.get_by_role("option", name="tiny").click()
    settled(tab)  # no person chooses twice before the page has answered once
    return tab
