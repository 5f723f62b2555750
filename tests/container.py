"""The steps of Dockerfile, carried out in a folder: what an image would be made of, without Docker."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

HOME = "/home/user"  # below which everything is that the steps write
_NEEDS_ROOT = "RUN useradd --create-home --uid 1000 user"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Names and arguments of the instructions, without comments; none is longer than its line."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def in_context(name: str, ignore: Path) -> bool:
    """Whether a file reaches the build: the last line of .dockerignore that fits it, or a folder above, decides."""
    path, kept = Path(name), True
    for line in ignore.read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if line and line[0] != "#":
            above = [str(each) for each in (path, *path.parents) if str(each) != "."]
            if any(fnmatch(each, pattern) or fnmatch(f"/{each}", pattern.replace("**", "*")) for each in above):
                kept = line[0] == "!"
    return kept


@dataclass
class Image:
    """What the steps have made.

    Attributes:
        folder: stands for `HOME`.
        environment: variables, for the steps and for what is started.
        command: that starts the app.
        health: shell command that succeeds while the app answers.
    """

    folder: Path
    environment: dict[str, str]
    work: Path = field(init=False)
    command: list[str] = field(init=False)
    health: str = field(init=False)

    def run(self, command: str) -> subprocess.CompletedProcess:
        """A shell command as in the image."""
        return subprocess.run(
            ["sh", "-c", self._here(command)], cwd=self.work, env=self.environment, capture_output=True, text=True
        )

    def _here(self, text: str) -> str:
        return text.replace(HOME, str(self.folder))


def build(context: Path, folder: Path, environment: Mapping[str, str]) -> Image:
    """Carry out the steps of a context's Dockerfile.

    Args:
        context: folder with Dockerfile and, where something is left out, .dockerignore.
        folder: stands for `HOME`.
        environment: variables that the image begins with; its PATH has python and pip.

    Raises:
        AssertionError: if a step fails, or is of a kind that is not known here.
    """
    image = Image(folder, dict(environment))
    for name, rest in instructions(context / "Dockerfile"):
        if name in ("ENV", "ARG"):
            key, _, value = rest.partition("=")
            image.environment[key] = image._here(value)
        elif name == "WORKDIR":
            image.work = Path(image._here(rest))
            image.work.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(context, source, image.work / target)
        elif name == "RUN" and f"{name} {rest}" != _NEEDS_ROOT:
            done = image.run(rest)
            assert not done.returncode, f"{rest}\n{done.stdout}\n{done.stderr}"
        elif name == "HEALTHCHECK":
            image.health = re.sub(r"^(--\S+ )*CMD ", "", rest)
        elif name == "CMD":
            image.command = json.loads(rest)
        else:
            assert name in ("FROM", "USER", "EXPOSE", "RUN"), name
    return image


def _copy(context: Path, source: str, target: Path) -> None:
    ignore = context / ".dockerignore"
    for path in sorted((context / source).rglob("*")) if source.endswith("/") else [context / source]:
        if (path.is_file() or path.is_symlink()) and (
            not ignore.exists() or in_context(str(path.relative_to(context)), ignore)
        ):
            place = target / (path.relative_to(context / source) if source.endswith("/") else source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place, follow_symlinks=False)
    assert os.path.lexists(target), f"{source} does not reach the build"
