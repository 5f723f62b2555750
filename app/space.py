"""Write the folder of a Hugging Face Space, from a checkout of this repository.

    python -m app.space docker --out DIR                 the app, with the demo checkpoint, on the free CPU
    python -m app.space static --out DIR --site SITE     a site of reports, as `subllm report --out SITE` writes it

The folder is what the Space's repository holds; nothing is sent anywhere.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from subllm import ConfigurationError, SubllmError
from subllm.command import Arguments, command

_ROOT = Path(__file__).parents[1]
_HEADER = """\
---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: gray
{sdk}
pinned: false
license: apache-2.0
short_description: See which tokens an LLM drops, why, and what it saves
---
"""
_DOCKER = """\
sdk: docker
app_port: 8501
suggested_hardware: cpu-basic
startup_duration_timeout: 30m
models:
  - HuggingFaceTB/SmolLM2-135M-Instruct"""
_STATIC = """\
sdk: static
app_file: index.html"""
_ABOUT = """
See which tokens a token-dropping LLM keeps, which it drops, why, and what that saves. {what}
"""
# The page of a Space shows the app in a frame of another site, where browsers keep back the cookie that protects
# uploads: they would all be refused. The protection keeps other sites from acting in a visitor's name; here, nobody
# has a name: there are no accounts, and nothing of a visitor is stored.
FRAME_OPTIONS = ("--server.enableXsrfProtection", "false")
_VARIABLES = {"SUBLLM_FRAME_ORIGIN": "https://huggingface.co", "SUBLLM_FEATURES": "uploads"}


def write_docker(folder: Path, title: str) -> None:
    """The Space that runs the app: what Dockerfile copies, and a Dockerfile that starts the app for a frame.

    Raises:
        ConfigurationError: if this is no checkout, or the folder is not empty.
    """
    if not (_ROOT / "Dockerfile").is_file():
        raise ConfigurationError(
            "There is no Dockerfile in {root}; run this in a checkout of the repository.", root=_ROOT
        )
    _check_empty(folder)
    lines = (_ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    for source in {*sources, ".dockerignore"} - {"README.md"}:
        if (_ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_ROOT / source, folder / source, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(_ROOT / source, folder / source)
    *steps, last = lines
    start = json.loads(last.removeprefix("CMD "))
    variables = [f"ENV {name}={value}" for name, value in _VARIABLES.items()]
    written = [*steps, *variables, f"CMD {json.dumps([*start, *FRAME_OPTIONS])}"]
    (folder / "Dockerfile").write_text("\n".join(written) + "\n", encoding="utf-8")
    what = "The app runs on a shared CPU, within limits; anybody can run it without them."
    _write_readme(folder, title, _DOCKER, what)


def write_static(folder: Path, title: str, site: Path) -> None:
    """The Space that shows reports, which need no server.

    Raises:
        ConfigurationError: if the site has no index.html, or the folder is not empty.
    """
    if not (site / "index.html").is_file():
        raise ConfigurationError(
            "{site} has no index.html; write a site with subllm report TRACE... --out {site}.", site=site
        )
    _check_empty(folder)
    shutil.copytree(site, folder, dirs_exist_ok=True)
    _write_readme(folder, title, _STATIC, "Each page shows a recorded run, and works without a server.")


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError("{folder} is not an empty folder; choose another one.", folder=folder)


def _write_readme(folder: Path, title: str, sdk: str, what: str) -> None:
    header = _HEADER.format(title=json.dumps(title, ensure_ascii=False), sdk=sdk)
    (folder / "README.md").write_text(header + _ABOUT.format(what=what), encoding="utf-8")


@command(SubllmError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.space", description="Write the folder of a Hugging Face Space."
    )
    parser.add_argument("kind", choices=("docker", "static"), help="the app, or a site of reports")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must be empty, or not exist")
    parser.add_argument("--site", type=Path, help="for static: folder with index.html, from subllm report")
    parser.add_argument("--title", default="SUBLLM explorer", help="name of the Space (default: SUBLLM explorer)")
    chosen = parser.parse_args(arguments)
    if (chosen.kind == "static") != (chosen.site is not None):
        parser.error("static needs --site, and docker has none")
    if chosen.kind == "static":
        write_static(chosen.out, chosen.title, chosen.site)
    else:
        write_docker(chosen.out, chosen.title)
    print(f"Send it with: hf upload OWNER/NAME {chosen.out} . --repo-type space")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
