"""The wheel: it installs into an empty environment, away from the checkout, and works there."""

import os
import subprocess
import sys

import pytest

from tests.extras import environment

from .server import ROOT, serve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel in it, and with links to what its extra app requires."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, "wheel", *build], check=True, cwd=folder)
    (wheel,) = folder.glob("subllm-*.whl")
    python = environment(folder / "environment", "app")
    command = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, cwd=folder)
    return folder


def run(installed, *arguments):
    command = [str(installed / "environment" / "bin" / "subllm"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=installed).stdout


def test_the_command_is_there_with_its_version(installed):
    assert run(installed, "--help").startswith("usage: subllm COMMAND")
    assert run(installed, "--version") == "subllm 0.2.0\n"
    assert run(installed, "demo", "--help").startswith("usage: subllm demo")


def test_what_ships_is_in_the_wheel(installed):
    script = (
        "import subllm.demo, subllm.assets, app.strings;"
        f"assert not subllm.assets.ASSETS.is_relative_to({str(ROOT)!r}), subllm.assets.ASSETS;"
        "print(subllm.demo.demo_folder().name, sorted(p.name for p in subllm.assets.ASSETS.iterdir()))"
    )
    python = installed / "environment" / "bin" / "python"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, cwd=installed)
    for name in ("demo", "hardware.json", "icon.svg", "prompts.json", "small", "strings.json", "training"):
        assert repr(name) in done.stdout


def test_a_checkpoint_is_traced(installed, tiny_checkpoint):
    options = ["--checkpoint", str(tiny_checkpoint), "--prompt", "the cat sat on the mat", "--out", "trace.npz"]
    assert "Level 1 keeps" in run(installed, "trace", *options)
    assert run(installed, "report", "trace.npz", "--out", "report.html") == "report.html\n"
    assert "class RoutingView" in (installed / "report.html").read_text(encoding="utf-8")


def test_the_app_answers_and_shows_its_first_page(installed, browser, tiny_checkpoint):
    command = [str(installed / "environment" / "bin" / "subllm"), "app", "--no-browser"]
    variables = {"SUBLLM_HOME": str(installed), "SUBLLM_ROOTS": str(tiny_checkpoint.parent), "PYTHONPATH": ""}
    with serve(installed / "log", variables | {"PATH": os.environ["PATH"]}, command, installed) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("combobox", name="Checkpoint").click()
        page.get_by_role("option", name="tiny").click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.locator(".routing .text:visible").wait_for()  # the first example, with what was dropped from it
        page.close()
