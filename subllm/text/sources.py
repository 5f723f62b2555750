"""Reading text piece by piece from files, folders and streamed datasets, so that it never has to fit in memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from ..errors import DataError

HELD_OUT = 0.02  # share of documents
_PIECE = 1_000_000  # characters of a document that are read at a time
_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is too long to be read at once.

    Attributes:
        source: file or dataset that the piece comes from.
        text: text of the piece.
        first: whether the piece begins a document.
        last: whether the piece ends a document.
    """

    source: str
    text: str
    first: bool = True
    last: bool = True


def read_pieces(paths: Iterable[Path | str]) -> Iterator[Piece]:
    """Read documents one after the other.

    Args:
        paths: .txt files (one document each), .jsonl and .parquet files (a "text" in every line or row), folders of
            such files, or names of datasets on the Hugging Face hub, which are streamed.

    Raises:
        DataError: if a path does not exist or is not text, or if none of them holds any text.
    """
    found = False
    for path in paths:
        for piece in _pieces(path):
            if piece.text.strip():
                found = True
                yield piece
    if not found:
        raise DataError(
            f"No text found in {', '.join(map(str, paths))}; give {', '.join(_SUFFIXES)} files or folders of them."
        )


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """Whether a document is held out. It depends only on the text and on the share of documents to hold out."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < share


def _pieces(path: Path | str) -> Iterator[Piece]:
    place = Path(path)
    if place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.suffix in _SUFFIXES):
            yield from _pieces(file)
    elif not place.is_file():
        if str(path).count("/") == 1 and not place.parent.exists():
            yield from _streamed(str(path), str(path))
        else:
            raise DataError(f"There is no text at {path}.")
    elif place.suffix == ".parquet":
        yield from _streamed(str(path), "parquet", data_files=str(path))
    elif place.suffix == ".jsonl":
        yield from _lines(place)
    else:
        yield from _text(place)


def _text(path: Path) -> Iterator[Piece]:
    """Read a file as one document."""
    with path.open(encoding="utf-8") as file:
        rest, first = "", True
        while True:
            try:
                read = file.read(_PIECE)
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 text: {error}") from error
            if "\0" in read:
                raise DataError(f"{path} is binary: it has a zero byte; give UTF-8 text.")
            text = rest + read
            if len(read) < _PIECE:
                yield Piece(str(path), text, first, True)
                return
            cut = max(text.rfind("\n"), text.rfind(" "), len(text) // 2)  # not inside a word
            yield Piece(str(path), text[:cut], first, False)
            rest, first = text[cut:], False


def _lines(path: Path) -> Iterator[Piece]:
    """Read a document from each line."""
    number = 0
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):  # noqa: B007 - the message names it
                if line.strip():
                    yield from _cut(str(path), json.loads(line)["text"])
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: neither UTF-8 text nor JSON with a 'text' ({error}); expected a line like "
                '{"text": "..."}.'
            ) from error


def _streamed(name: str, kind: str, **options: Any) -> Iterator[Piece]:
    """Read a document from each row of a dataset."""
    try:
        for row in load_dataset(kind, split="train", streaming=True, **options):
            yield from _cut(name, row["text"])
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{name} cannot be read as a dataset with a column 'text': {error}") from error


def _cut(source: str, text: object) -> Iterator[Piece]:
    if not isinstance(text, str):
        raise TypeError(f"'text' is a {type(text).__name__}")
    count = max(-(-len(text) // _PIECE), 1)
    for index in range(count):
        yield Piece(source, text[index * _PIECE : (index + 1) * _PIECE], index == 0, index == count - 1)
