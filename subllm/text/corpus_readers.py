"""Readers of the packages that hold a corpus's text; each yields documents of a package file.

Every reader takes the package file and a regular expression for the names of the files in it that hold the text.
"""

import gzip
import html
import html.parser
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DataError

SHORTEST = 80  # characters of a paragraph; shorter ones are headings, table cells and navigation
_AR_HEADER = 60  # bytes before each member of an ar archive


def _members(archive: tarfile.TarFile, files: str) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        file = archive.extractfile(member) if member.isfile() and re.search(files, member.name) else None
        if file is not None:
            yield member.name, file.read()


def _tar_members(path: Path, files: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        yield from _members(archive, files)


def _deb_members(path: Path, files: str) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package (an ar archive with a tar inside) by name, uncompressed."""
    with path.open("rb") as package:
        package.seek(8)
        while header := package.read(_AR_HEADER):
            if header.startswith(b"data.tar.xz"):
                with lzma.open(package) as content, tarfile.open(fileobj=content, mode="r|") as archive:
                    for name, data in _members(archive, files):
                        yield name, gzip.decompress(data) if name.endswith(".gz") else data
                return
            size = int(header[48:58])
            package.seek(size + size % 2, 1)
    raise DataError(f"{path.name} has no data.tar.xz; expected a Debian package of the bookworm format.")


class _Paragraphs(html.parser.HTMLParser):
    """Text of <p>, <li> and <dd>, which HTML and Mallard pages share, and of <div class="para">; no text outside."""

    _TAGS = ("p", "li", "dd")

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._depth = 0
        self._divisions: list[bool] = []  # open divisions, and whether each is a paragraph

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        paragraph = tag in self._TAGS
        if tag == "div":
            paragraph = ("class", "para") in attrs
            self._divisions.append(paragraph)
        if paragraph:
            self._flush()
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self._TAGS or (tag == "div" and self._divisions and self._divisions.pop()):
            self._flush()
            self._depth = max(self._depth - 1, 0)

    def handle_data(self, data: str) -> None:
        if self._depth:
            self._text.append(data)

    def _flush(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if len(text) >= SHORTEST:
            self.paragraphs.append(text)


def _markup(path: Path, files: str) -> Iterator[str]:
    """The paragraphs of each HTML or Mallard page in a Debian package."""
    for _, content in _deb_members(path, files):
        parser = _Paragraphs()
        parser.feed(content.decode(errors="replace"))
        yield "\n\n".join(parser.paragraphs)


def _pod(path: Path, files: str) -> Iterator[str]:
    """The prose of each page of Perl's documentation."""
    for _, content in _deb_members(path, files):
        blocks = re.split(r"\n\s*\n", content.decode(errors="replace"))
        prose = [block for block in blocks if len(block) >= SHORTEST and block[0] not in "= \t"]
        text = "\n\n".join(" ".join(block.split()) for block in prose)
        for _ in range(3):  # formatting codes nest
            text = re.sub(r"[BCEFILSXZ]<+\s?([^<>]*?)\s?>+", r"\1", text)
        yield text


def _wiki_extracts(path: Path, files: str) -> Iterator[str]:
    """The extract of each article in the one JSON file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if re.search(files, name)]
        for article in json.loads(archive.read(name)).values():
            yield article["extract"]


def _json_texts(path: Path, files: str) -> Iterator[str]:
    """The `text` of each JSON file that has one."""
    for _, data in _tar_members(path, files):
        content = json.loads(data)
        if isinstance(content, dict) and isinstance(content.get("text"), str):
            yield content["text"]


def _r_novels(path: Path, files: str) -> Iterator[str]:
    """Chapters of the novels in an R package: zlib streams, each a vector of lines behind its type (16) and length."""
    ((_, database),) = _deb_members(path, files)
    while database:
        stream = zlib.decompressobj()
        content = stream.decompress(database[4:])  # the first four bytes hold its size
        database = stream.unused_data
        position = content.index(b"\0\0\0\x10") + 8
        lines = []
        while position + 8 <= len(content):
            size = int.from_bytes(content[position + 4 : position + 8], "big", signed=True)  # behind the string's type
            position += 8 + max(size, 0)
            lines.append(content[position - max(size, 0) : position].decode(errors="replace"))
        yield from re.split(r"\n(?=chapter )", "\n".join(lines), flags=re.IGNORECASE)


def _sword(path: Path, files: str) -> Iterator[str]:
    """Chapters of a SWORD module: an index of (offset, size, size of the text) into zlib streams of OSIS markup."""
    found = dict(_deb_members(path, files))
    for name in (name for name in sorted(found) if name.endswith("s")):
        data = found[f"{name[:-1]}z"]
        for offset, size, _ in struct.iter_unpack("<III", found[name]):
            book = zlib.decompress(data[offset : offset + size]).decode(errors="replace")
            for chapter in re.split(r"(?=<chapter )", book):
                text = re.sub(r"<[^>]*>", " ", re.sub(r"</?(?:w|hi|q|transChange)\b[^>]*>", "", chapter))
                yield " ".join(html.unescape(text).split())


def _plays(path: Path, files: str) -> Iterator[str]:
    """Acts of plays, and poems, as Project Gutenberg has them."""
    for _, data in _tar_members(path, files):
        yield from re.split(r"\n(?=ACT [IV])", data.decode(errors="replace"))


def _verses(path: Path, files: str) -> Iterator[str]:
    """Chapters of a Bible that has a verse in every line of JSON."""
    chapters: dict[tuple[str, int], list[str]] = {}
    for _, data in _tar_members(path, files):
        for verse in map(json.loads, data.splitlines()):
            chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"])
    yield from map(" ".join, chapters.values())


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    "markup": _markup,
    "pod": _pod,
    "wiki-extracts": _wiki_extracts,
    "json-texts": _json_texts,
    "r-novels": _r_novels,
    "sword": _sword,
    "plays": _plays,
    "verses": _verses,
}
