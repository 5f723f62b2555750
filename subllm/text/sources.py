"""Reading text piece by piece from files, folders and streamed datasets, so that it never has to fit in memory.

A row that is no text (nothing, a number, half a surrogate pair, a broken line) does not end hours of reading: it is
left out. The first of each file is named at once, and all are counted at the end, on standard error.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from ..errors import DataError, first_line

HELD_OUT = 0.02  # share of documents
_PIECE = 1_000_000  # characters of a document that are read at a time
_LINE = 100_000_000  # bytes of a line of a .jsonl file, which is in memory as a whole
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_ROWS = 64  # of a Parquet file that are read at a time
_NAMED = 5  # files whose first row left out is named


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is too long to be read at once.

    Attributes:
        source: file or dataset that the piece comes from.
        text: text of the piece.
        first: whether the piece begins a document.
        last: whether the piece ends a document.
        row: row of the document in its source, from 1.
    """

    source: str
    text: str
    first: bool = True
    last: bool = True
    row: int = 1


def read_pieces(paths: Iterable[Path | str], left_out: "LeftOut | None" = None) -> Iterator[Piece]:
    """Read documents one after the other; rows that are no text are left out, which is said.

    Args:
        paths: .txt files (one document each), .jsonl and .parquet files (a "text" in every line or row), folders of
            such files, or names of datasets on the Hugging Face hub, which are streamed.
        left_out: told of what is left out; by default it is said on standard error.

    Raises:
        DataError: if a path does not exist or cannot be read, or if none of them holds any text.
    """
    found, left_out = False, LeftOut() if left_out is None else left_out
    try:
        for path in paths:
            for piece in _visible(_pieces(path, left_out), left_out):
                found = True
                yield piece
    finally:
        left_out.say()
    if not found:
        raise DataError(
            f"No text found in {', '.join(map(str, paths))}{left_out.first and f' ({left_out.first})'}; give "
            f"{', '.join(_SUFFIXES)} files or folders of them."
        )


def _visible(pieces: Iterable[Piece], left_out: "LeftOut") -> Iterator[Piece]:
    """The pieces with visible characters; each document begins with the first of its own, and ends with the last."""
    held: Piece | None = None  # the last of the document may be the one after it
    for piece in pieces:
        if piece.text.strip():
            if held is not None:
                yield held
            held = replace(piece, first=held is None, last=False)
        if piece.last:
            if held is None:
                left_out.add_empty(piece.source, piece.row)
            else:
                yield replace(held, last=True)
            held = None


class LeftOut:
    """Rows that are left out because they are no text.

    Attributes:
        first: the first of them, and what is wrong with it; empty if there is none.
    """

    def __init__(self) -> None:
        self.first = ""
        self._rows: dict[str, int] = {}

    def add(self, source: str, row: int, wrong: str) -> None:
        """Count a row, from 1, and name the first of each file."""
        found = f"{source}, row {row:,}: {wrong}"
        self.first = self.first or found
        if source not in self._rows and len(self._rows) < _NAMED:
            tqdm.write(f"{found}; rows that are no text are left out", file=sys.stderr)
        self._rows[source] = self._rows.get(source, 0) + 1

    def add_empty(self, source: str, row: int) -> None:
        """Pass over a row without visible characters: it holds a text, and nothing to read."""

    def say(self) -> None:
        """Say how many there were."""
        if self._rows:
            files = [f"{source}: {rows:,}" for source, rows in self._rows.items()]
            more = f" and {len(files) - _NAMED:,} more files" if len(files) > _NAMED else ""
            total = sum(self._rows.values())
            tqdm.write(
                f"{total:,} {'row that is' if total == 1 else 'rows that are'} no text left out "
                f"({', '.join(files[:_NAMED])}{more})",
                file=sys.stderr,
            )


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
    """Whether a document is held out. It depends only on the text and on the share of documents to hold out."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < share


def _pieces(path: Path | str, left_out: LeftOut) -> Iterator[Piece]:
    place = Path(path)
    if place.is_dir():
        for file in sorted(p for p in place.rglob("*") if p.suffix in _SUFFIXES):
            yield from _pieces(file, left_out)
        return
    if not place.is_file() and (str(path).count("/") != 1 or place.parent.exists()):
        raise DataError(f"There is no text at {path}.")
    if not place.is_file():
        rows = _streamed(str(path))
    elif place.suffix == ".parquet":
        rows = _parquet(place)
    elif place.suffix == ".jsonl":
        rows = _lines(place)
    else:
        yield from _text(place, left_out)
        return
    for row, text in enumerate(rows, start=1):
        wrong = text.wrong if isinstance(text, _Broken) else _no_text(text)
        if wrong:
            left_out.add(str(path), row, wrong)
        else:
            yield from _cut(str(path), row, text)


@dataclass(frozen=True)
class _Broken:
    """A row that cannot be read, in place of its text."""

    wrong: str


def _no_text(value: object) -> str:
    """Why a value cannot be used as text; empty if it can be."""
    if not isinstance(value, str):
        return "it has no 'text'" if value is None else f"its 'text' is of type {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"its 'text' has half a surrogate pair at character {error.start + 1:,}"
    return ""


def _text(path: Path, left_out: LeftOut) -> Iterator[Piece]:
    """Read a file as one document. It is read twice: a document that turns out to be no text leaves no beginning."""
    try:
        with path.open(encoding="utf-8") as file:
            while read := file.read(_PIECE):
                if "\0" in read:
                    left_out.add(str(path), 1, "it is binary, with a zero byte")
                    return
    except UnicodeDecodeError as error:
        left_out.add(str(path), 1, f"it is not UTF-8 text ({error.reason})")
        return
    with path.open(encoding="utf-8") as file:
        rest, first = "", True
        while True:
            read = file.read(_PIECE)
            text = rest + read
            if len(read) < _PIECE:
                yield Piece(str(path), text, first, True)
                return
            cut = max(text.rfind("\n"), text.rfind(" "), len(text) // 2)  # not inside a word
            yield Piece(str(path), text[:cut], first, False)
            rest, first = text[cut:], False


def _lines(path: Path) -> Iterator[object]:
    """The text of each line; an empty one of a blank line."""
    with path.open("rb") as file:
        while line := file.readline(_LINE):
            if len(line) == _LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_LINE)
                yield _Broken(f"its line has more than {_LINE:,} bytes")
                continue
            try:
                content = json.loads(line.decode()) if line.strip() else {"text": ""}
            except (ValueError, RecursionError) as error:
                yield _Broken(f"it is neither UTF-8 text nor JSON ({first_line(error)})")
                continue
            yield content.get("text") if isinstance(content, dict) else None


def _parquet(path: Path) -> Iterator[object]:
    """The text of each row."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise ValueError("there is no column 'text'")
            for batch in file.iter_batches(_ROWS, columns=["text"]):
                for value in batch.column("text"):
                    try:
                        yield value.as_py()
                    except UnicodeDecodeError as error:
                        yield _Broken(f"its 'text' is not UTF-8 ({error.reason})")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _streamed(name: str) -> Iterator[object]:
    """The text of each row of a dataset on the hub."""
    from datasets import load_dataset  # noqa: PLC0415 - the app is installed without it, and reads files
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        for row in load_dataset(name, split="train", streaming=True):
            yield row["text"]
    except (DatasetsError, pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: Path | str, error: Exception) -> DataError:
    return DataError(f"{name} cannot be read as a dataset with a column 'text': {first_line(error)}")


def _cut(source: str, row: int, text: Any) -> Iterator[Piece]:
    count = max(-(-len(text) // _PIECE), 1)
    for index in range(count):
        yield Piece(source, text[index * _PIECE : (index + 1) * _PIECE], index == 0, index == count - 1, row)
