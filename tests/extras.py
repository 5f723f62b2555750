"""Environments with what pip installs for an extra of pyproject.toml, and nothing else that the tests have."""

import os
import tomllib
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.architecture import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distributions(extra: str | None) -> list[Distribution]:
    """What the package requires with an extra, or without one, and whatever that requires in turn."""
    asked = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else ())]
    found: dict[tuple[str, str], Distribution] = {}  # by the name, and the extra asked of it
    waiting = [Requirement(text) for text in asked]
    while waiting:
        wanted = waiting.pop()
        for chosen in ("", *wanted.extras):
            if (wanted.name, chosen) in found:
                continue
            try:
                found[wanted.name, chosen] = distribution(wanted.name)
            except PackageNotFoundError:  # what needs it will say so
                continue
            further = [Requirement(text) for text in found[wanted.name, chosen].requires or ()]
            waiting += [each for each in further if each.marker is None or each.marker.evaluate({"extra": chosen})]
    return list(found.values())


def environment(folder: Path, extra: str | None) -> Path:
    """Make a virtual environment with links to these distributions; its Python.

    Args:
        folder: of the environment.
        extra: one of pyproject.toml, or None for the package alone.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    for each in distributions(extra):
        for name in {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                os.symlink(each.locate_file(name), site / name)
    return folder / "bin" / "python"
