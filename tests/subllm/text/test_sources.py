"""Text is read piece by piece and whole, and what is no text is refused with a reason."""

import pytest

from subllm import DataError
from subllm.text.sources import read_pieces


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
        ("broken.jsonl", b'{"text": "a"}\n{"tex', "line 2"),
        ("other.jsonl", b'{"body": "a"}\n', "'text'"),
        ("number.jsonl", b'{"text": 5}\n', "int"),
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
