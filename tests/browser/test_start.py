"""The commands that start the app, each in a process of its own: the page comes, and only who should can reach it."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .server import ROOT, serve
from .waiting import settled

PYTHON = Path(sys.executable)


def make_run():
    """The last command of `make run`."""
    said = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return shlex.split(said.strip().splitlines()[-1])


def procfile():
    """What a host runs."""
    (line,) = [line for line in (ROOT / "Procfile").read_text().splitlines() if line.startswith("web:")]
    return ["sh", "-c", f"exec {line.removeprefix('web:').strip()}"]


def make_bad_folders(root):
    """A root with folders that no checkpoint can be in."""
    for name in (b"folder", b"pipe", b"circle", b"device", b"no utf-8 \xff"):
        os.makedirs(os.path.join(os.fsencode(root), name))
    (root / "folder" / "config.json").mkdir()
    os.mkfifo(root / "pipe" / "config.json")
    (root / "circle" / "config.json").symlink_to("config.json")
    (root / "device" / "config.json").symlink_to("/dev/zero")
    with open(os.path.join(os.fsencode(root), b"no utf-8 \xff", b"config.json"), "w") as file:
        file.write('{"model_type": "subllm"}')


def reachable(host, address):
    """Whether the port answers under an address of this machine."""
    try:
        with socket.create_connection((host, urlsplit(address).port), timeout=10):
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("command", "elsewhere", "open_to_all"),
    [
        ([str(PYTHON.with_name("streamlit")), "run", "app/main.py"], False, False),
        ([str(PYTHON.with_name("streamlit")), "run", str(ROOT / "app/main.py")], True, False),
        ([str(PYTHON), "-m", "streamlit", "run", str(ROOT / "app/main.py")], True, False),
        (make_run, False, False),
        (procfile, False, True),
    ],
    ids=["streamlit", "streamlit from elsewhere", "python -m streamlit from elsewhere", "make run", "Procfile"],
)
def test_the_app_starts_and_listens_where_it_should(browser, tmp_path, command, elsewhere, open_to_all):
    make_bad_folders(tmp_path / "roots")
    variables = {"SUBLLM_HOME": str(tmp_path), "SUBLLM_ROOTS": str(tmp_path / "roots")}
    variables |= {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    command = command() if callable(command) else command
    with serve(tmp_path / "log", variables, command, tmp_path if elsewhere else ROOT) as address:
        assert reachable("127.0.0.1", address)
        assert reachable("127.0.0.2", address) == open_to_all
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("button", name="Run", exact=True).wait_for()
        settled(page)  # a page that is closed while the server sends makes a traceback
        page.close()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said, said
    assert open_to_all or f"URL: {address}" in said
