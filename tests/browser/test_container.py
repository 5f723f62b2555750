"""Dockerfile and a Hugging Face Space: their steps are carried out, and the app that they make answers."""

import os
import sysconfig
import venv

import pytest
from playwright.sync_api import expect

from tests.container import build, in_context, instructions

from .server import ROOT, serve


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables with an empty Python on the PATH; only what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}


def test_everything_that_is_copied_reaches_the_build_and_nothing_else():
    sources = [
        source for name, rest in instructions(ROOT / "Dockerfile") if name == "COPY" for source in rest.split()[:-1]
    ]
    ignore = ROOT / ".dockerignore"
    assert all(in_context(source.rstrip("/"), ignore) for source in sources)
    allowed = {line[1:] for line in ignore.read_text().splitlines() if line.startswith("!")}
    assert allowed == {source.rstrip("/") for source in sources}
    for name in (".git/config", ".venv/bin/python", "tests/conftest.py", "app/__pycache__/main.pyc", "secrets.txt"):
        assert not in_context(name, ignore), name


def test_user_and_demo_are_as_hosts_expect():
    steps = instructions(ROOT / "Dockerfile")
    user = steps.index(("USER", "user"))
    assert user < steps.index(("RUN", "python -m subllm.demo demo"))  # it is this user's
    assert ("ENV", "SUBLLM_PROFILE=public") in steps


@pytest.mark.soak
def test_the_steps_make_an_app_that_answers_with_the_demo_built_in(browser, environment, tmp_path):
    image = build(ROOT, tmp_path / "user", environment)
    assert image.run("subllm --version").stdout.startswith("subllm ")
    assert image.environment.pop("STREAMLIT_SERVER_PORT") == "8501"  # a free one, here
    variables = {**image.environment, "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    with serve(tmp_path / "log", variables, image.command, image.work) as address:
        image.environment["STREAMLIT_SERVER_PORT"] = address.rpartition(":")[2]
        healthy = image.run(image.health)
        assert not healthy.returncode, healthy.stderr
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_role("button", name="Trace (.npz)").wait_for()
        expect(page.get_by_role("alert")).to_have_count(0)
        page.close()
    assert image.run(image.health).returncode  # once nothing answers
