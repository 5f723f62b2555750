"""Text is read piece by piece and whole, and what is no text is refused with a reason."""

import json
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subllm import DataError
from subllm.text.sources import LeftOut, read_pieces


def test_a_long_document_is_read_in_parts_that_lose_nothing(tmp_path):
    text = "word " * 500_000 + "ümläut" + "x" * 1_500_000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    pieces = list(read_pieces([tmp_path]))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 2_100_000
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "No text found"),
        ("spaces.txt", b" \n ", "No text found"),
        ("binary.txt", b"\x00\x01\x02", "zero byte"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
        ("broken.jsonl", b'\n{"tex', "row 2: it is neither UTF-8 text nor JSON"),
        ("other.jsonl", b'{"body": "a"}\n', "'text'"),
        ("number.jsonl", b'{"text": 5}\n', "row 1: its 'text' is of type int"),
        ("broken.parquet", b"not parquet", "cannot be read as a dataset"),
    ],
)
def test_what_is_no_text_is_said(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_pieces([tmp_path / name]))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match="There is no text at"):
        list(read_pieces([tmp_path / "nowhere"]))


NO_TEXT = {
    "nothing": None, "number": 7, "truth": True, "list": ["a"], "object": {"text": "a"}, "half": "a\ud800",
    "other half": "\udc00 b",
}  # fmt: skip


@pytest.mark.parametrize("kind", [*NO_TEXT, "not UTF-8", "cut", "no object", "nested", "long number"])
def test_a_line_that_is_no_text_is_named_left_out_and_counted(tmp_path, capsys, kind):
    raw = {
        "not UTF-8": b'{"text": "caf\xe9"}', "cut": b'{"text": "a', "no object": b"[1]", "nested": b"[" * 100_000,
        "long number": b'{"text": ' + b"9" * 5_000 + b"}",
    }  # fmt: skip
    bad = raw.get(kind) or json.dumps({"text": NO_TEXT.get(kind)}).encode()
    lines = [b'{"text": "first"}', bad, b'{"text": "second"}', bad, b'{"text": "third"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert [piece.text for piece in read_pieces([tmp_path])] == ["first", "second", "third"]
    named, counted = capsys.readouterr().err.splitlines()
    assert named.startswith(f"{tmp_path / 'a.jsonl'}, row 2: it")
    assert counted == f"2 rows that are no text left out ({tmp_path / 'a.jsonl'}: 2)"


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["first", None, "second"]),
        pyarrow.array([b"first", b"\xff", b"second"]).cast(pyarrow.string(), safe=False),
        pyarrow.array([b"first", b"\xed\xa0\x80", b"second"]).cast(pyarrow.string(), safe=False),
        pyarrow.array(["first", None, "second"]).dictionary_encode(),
        pyarrow.array(["first", None, "second"], pyarrow.large_string()),
    ],
)
def test_a_row_of_a_parquet_file_that_is_no_text_is_named_left_out_and_counted(tmp_path, capsys, column):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert [piece.text for piece in read_pieces([tmp_path / "a.parquet"])] == ["first", "second"]
    named, counted = capsys.readouterr().err.splitlines()
    assert "a.parquet, row 2: its 'text' " in named or "row 2: it has no 'text'" in named
    assert counted.startswith("1 row that is no text left out")


@pytest.mark.parametrize("values", [[1, 2], [None, None], [[1], [2]], [b"a", b"b"], [{"a": 1}, {"a": 2}]])
def test_a_column_of_another_type_is_no_text(tmp_path, values):
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"No text found .*row 1: it"):
        list(read_pieces([tmp_path / "a.parquet"]))


def test_a_parquet_file_without_the_column_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'"):
        list(read_pieces([tmp_path / "a.parquet"]))


def test_a_plain_file_that_is_no_text_leaves_no_beginning(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"word " * 500_000 + b"\xff")
    (tmp_path / "b.txt").write_text("whole")
    assert [piece.text for piece in read_pieces([tmp_path])] == ["whole"]
    assert "a.txt, row 1: it is not UTF-8 text" in capsys.readouterr().err


def test_many_files_without_text_are_said_in_few_lines(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number}.jsonl").write_text('{"text": null}\n{"text": 5}\n')
    (tmp_path / "z.txt").write_text("text")
    assert len(list(read_pieces([tmp_path]))) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and said[-1].startswith("60 rows that are no text left out") and "25 more files" in said[-1]


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(st.characters()), st.lists(st.integers()))))
def test_any_rows_are_read_or_left_out(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in [*rows, "last"]))
        texts = [row for row in rows if isinstance(row, str) and row.strip() and encodes(row)]
        assert [piece.text for piece in read_pieces([path])] == [*texts, "last"]


def encodes(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_what_is_left_out_can_be_collected_with_its_row(tmp_path, capsys):
    class Collected(LeftOut):
        def __init__(self):
            super().__init__()
            self.found = []

        def add(self, source, row, wrong):
            self.found.append((source, row, wrong))

        def add_empty(self, source, row):
            self.found.append((source, row, "empty"))

    rows = [{"text": "one"}, {"text": " "}, {"text": 3}, {"text": "four"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    collected = Collected()
    assert [(piece.row, piece.text) for piece in read_pieces([path], collected)] == [(1, "one"), (4, "four")]
    assert [(row, wrong) for _, row, wrong in collected.found] == [(2, "empty"), (3, "its 'text' is of type int")]
    assert not capsys.readouterr().err
