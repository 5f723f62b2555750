"""What pip installs for each extra of pyproject.toml suffices for what the extra is for, and the rest is said."""

import json
import os
import re
import subprocess

import pytest

from tests.app.scripts import MODULES, script
from tests.architecture import ROOT
from tests.extras import PROJECT, environment

EXTRAS = [None, *PROJECT["optional-dependencies"]]
LATER = {  # imported by what an extra is for, once a demo, a GGUF file, a dataset, a cluster or a task is asked for
    "app": ["subllm.demo", "gguf"],
    "train": ["subllm.demo", "gguf", "datasets", "torch.utils.tensorboard"],
    "corpus": ["subllm.demo", "gguf", "datasets", "ray.data"],
    "eval": ["lm_eval.tasks", "lm_eval.models.huggingface"],
}
HELPS = """
import contextlib, importlib, io, json, sys
from app.command import COMMANDS, main

said = {}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            code = main([name, "--help"])
        except SystemExit as stopped:
            code = stopped.code
    said[name] = code, (out if code == 0 else error).getvalue()
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(said))
"""
APP = """
import importlib, pkgutil, sys
from streamlit.testing.v1 import AppTest
import app

for module in pkgutil.walk_packages(app.__path__, "app."):
    if module.name != "app.main":  # a script, which is run below
        importlib.import_module(module.name)
for page in (AppTest.from_file(sys.argv[1]), *map(AppTest.from_string, sys.argv[2:])):
    page.run(timeout=120)
    assert not page.exception and not page.error, (page.exception, page.error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a script in the environment of an extra; what it prints."""
    made = {}

    def run(extra, script, *arguments):
        if extra not in made:
            made[extra] = environment(tmp_path_factory.mktemp(extra or "base"), extra)
        variables = {"PYTHONPATH": str(ROOT), "SUBLLM_HOME": str(made[extra].parents[1] / "home"), "SUBLLM_ROOTS": ""}
        command = [str(made[extra]), "-c", script, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | variables, cwd=made[extra].parent
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def said(run):
    """What the commands say when they are asked for their help, by the extra that is installed."""
    return {extra: json.loads(run(extra, HELPS, *LATER.get(extra, []))) for extra in EXTRAS}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_command_prints_its_help_or_names_an_extra_that_suffices(said, extra):
    for name, (code, text) in said[extra].items():
        if code == 0:
            assert text.startswith(f"usage: subllm {name} ")
            continue
        found = re.fullmatch(rf"error: subllm {name} needs \w+; install it with: pip install 'subllm\[(\w+)\]'\n", text)
        assert code == 1 and found, text
        assert said[found[1]][name][0] == 0, text


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("demo", "app"), ("report", "app"), ("why", "app"), ("corpus", "corpus"), ("convert", "train"),
        ("data", "train"), ("evaluate", "train"), ("tradeoff", "train"), ("train", "train"),
    ],
)  # fmt: skip
def test_a_command_names_the_extra_that_it_is_part_of(said, command, extra):
    assert f"'subllm[{extra}]'" in said[None][command][1]


def test_the_app_starts_with_its_extra(run):
    run("app", APP, str(ROOT / "app" / "main.py"), *map(script, MODULES))
