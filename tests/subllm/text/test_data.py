"""Text becomes tokens that training can trust: all of it once, in a fixed order, whatever its size."""

import json

import numpy as np
import pandas as pd
import pytest

from subllm import DataError
from subllm.text.data import Blocks, Packed, pack, train_tokenizer
from subllm.text.sources import is_held_out, read_pieces

TEXTS = [f"Document {number} tells of the number {number * 7} and of nothing else." for number in range(200)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in [*TEXTS[:100], *TEXTS[:10]]]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.txt").write_text(TEXTS[100])
    pd.DataFrame({"text": TEXTS[101:]}).to_parquet(folder / "c.parquet")
    return folder


def test_every_document_is_packed_once_and_can_be_read_back(corpus, tokenizer, tmp_path):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1, shard_tokens=1000)
    assert packed.duplicates == 10
    found = set()
    for name, split in packed.splits.items():
        ids = np.concatenate([np.fromfile(packed.folder / shard, dtype=packed.dtype) for shard, _ in split.shards])
        assert all(count <= 1000 for _, count in split.shards) and len(ids) == split.tokens
        texts = tokenizer.decode(ids).split(tokenizer.eos_token)[:-1]
        assert len(texts) == split.documents
        assert {is_held_out(text, 0.1) for text in texts} == {name == "held_out"}
        found |= set(texts)
    assert found == set(TEXTS)


def test_a_long_document_is_read_in_parts_that_lose_nothing(tmp_path):
    text = "word " * 500_000 + "ümläut" + "x" * 1_500_000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    pieces = list(read_pieces([tmp_path]))
    assert "".join(piece.text for piece in pieces) == text
    assert max(len(piece.text) for piece in pieces) < 2_100_000
    assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_blocks_cover_the_text_once_per_round_in_an_order_of_their_own(corpus, tokenizer, tmp_path):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1, shard_tokens=1000)
    plain = Blocks(packed, "train", 32)
    rows = [tuple(block["input_ids"].tolist()) for block in map(plain.__getitem__, range(len(plain)))]
    shuffled = Blocks(packed, "train", 32, count=2 * len(plain), seed=3)
    rounds = [[tuple(shuffled[k + r * len(plain)]["input_ids"].tolist()) for k in range(len(plain))] for r in (0, 1)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rows)
    assert rounds[0] != rounds[1] and rounds[0] != rows
    again = Blocks(Packed.read(packed.folder), "train", 32, count=2 * len(plain), seed=3)
    assert tuple(again[len(plain)]["input_ids"].tolist()) == rounds[1][0]


def test_no_text_is_unknown_to_a_trained_tokenizer(tokenizer):
    for text in ("naïve 🦙 \x00 日本", "1234", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4
    assert 257 < len(tokenizer) <= 400


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


def test_a_missing_file_a_small_vocabulary_and_a_folder_that_is_there_are_said(tmp_path, tokenizer):
    with pytest.raises(DataError, match="There is no text at"):
        list(read_pieces([tmp_path / "nowhere"]))
    with pytest.raises(DataError, match="257"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(DataError, match="is there already"):
        pack([tmp_path], tokenizer, tmp_path)
    (tmp_path / "one.txt").write_text("only one document")
    with pytest.raises(DataError, match="held_out"):
        pack([tmp_path / "one.txt"], tokenizer, tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


def test_a_damaged_shard_is_said(corpus, tokenizer, tmp_path):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1)
    shard = packed.folder / packed.splits["train"].shards[0][0]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match="bytes, expected"):
        Packed.read(packed.folder)
    with pytest.raises(DataError, match="not packed text"):
        Packed.read(corpus)
    with pytest.raises(DataError, match="less than one block"):
        Blocks(pack([corpus], tokenizer, tmp_path / "other", held_out=0.1), "held_out", 10_000)
