"""Text becomes tokens that training can trust: all of it once, in a fixed order, whatever its size."""

import json

import numpy as np
import pytest

from subllm import DataError
from subllm.text import sources
from subllm.text.blocks import Blocks
from subllm.text.packed import Packed, pack
from subllm.text.sources import is_held_out
from tests.subllm.text.conftest import TEXTS


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


def test_a_folder_that_is_there_and_an_empty_part_are_reported(tmp_path, tokenizer):
    with pytest.raises(DataError, match="exists already"):
        pack([tmp_path], tokenizer, tmp_path)
    (tmp_path / "one.txt").write_text("only one document")
    with pytest.raises(DataError, match="held_out"):
        pack([tmp_path / "one.txt"], tokenizer, tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


def test_a_damaged_shard_is_reported(corpus, tokenizer, tmp_path):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1)
    shard = packed.folder / packed.splits["train"].shards[0][0]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match="bytes, expected"):
        Packed.read(packed.folder)
    with pytest.raises(DataError, match="not packed text"):
        Packed.read(corpus)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda meta: [], "not packed text"),
        (lambda meta: None, "not packed text"),
        (lambda meta: meta | {"splits": []}, "not packed text"),
        (lambda meta: meta | {"splits": {"train": meta["splits"]["train"]}}, "there is no 'held_out'"),
        (lambda meta: meta | {"dtype": "foo"}, "its dtype is 'foo'; allowed are uint16, uint32"),
        (lambda meta: meta | {"dtype": "object"}, "its dtype is 'object'"),
        (lambda meta: meta | {"vocabulary": "many"}, "'many'"),
        (lambda meta: meta | {"vocabulary": float("inf")}, "infinity"),
        (lambda meta: {name: value for name, value in meta.items() if name != "digest"}, "there is no 'digest'"),
        (lambda meta: meta | {"format": 0}, "another version"),
        (lambda meta: with_shards(meta, [[]]), "not packed text"),
        (lambda meta: with_shards(meta, [["train-00000.bin", "x"]]), "not packed text"),
        (lambda meta: with_shards(meta, [["nowhere.bin", 0]]), "a shard has no tokens"),
        (lambda meta: with_shards(meta, [["../packed.json", 5]]), "bytes, expected 10"),
    ],
)
def test_a_damaged_description_is_reported(corpus, tokenizer, tmp_path, change, said):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1)
    assert Packed.read(packed.folder) == packed
    file = packed.folder / "packed.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DataError, match=said):
        Packed.read(packed.folder)


def with_shards(meta, shards):
    return meta | {"splits": meta["splits"] | {"train": {"shards": shards, "documents": 1}}}


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_an_id_that_the_vocabulary_does_not_have_is_reported(corpus, tokenizer, tmp_path, part):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1)
    shard = packed.folder / packed.splits[part].shards[-1][0]
    shard.write_bytes(shard.read_bytes()[:-2] + np.uint16(60_000).tobytes())
    again = Packed.read(packed.folder)
    with pytest.raises(DataError, match=f"has the token id 60000, .* are 0 to {len(tokenizer) - 1}; pack the text"):
        Blocks(again, part, 8)
    (other,) = {"train", "held_out"} - {part}
    assert len(Blocks(again, other, 8))


@pytest.mark.parametrize(
    ("second", "read"),
    [
        ("h" * 100 + "last", "h" * 100),  # held out, as the first is not; its last piece was there before
        ("h" * 100 + " " * 50, "h" * 100),
        (" " * 100 + "h" * 100, "h" * 100),
        ("a" * 100 + "last", ""),  # there before as a whole
    ],
    ids=["duplicate end", "blank end", "blank beginning", "duplicate"],
)
def test_a_long_document_ends_whichever_of_its_pieces_are_left_out(tokenizer, tmp_path, monkeypatch, second, read):
    monkeypatch.setattr(sources, "_PIECE", 100)
    texts = ["a" * 100 + "last", second, *TEXTS[:60]]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packed = pack([tmp_path / "text.jsonl"], tokenizer, tmp_path / "packed", held_out=0.1)
    found = []
    for name, split in packed.splits.items():
        ids = np.concatenate([np.fromfile(packed.folder / shard, dtype=packed.dtype) for shard, _ in split.shards])
        documents = tokenizer.decode(ids).split(tokenizer.eos_token)
        assert documents.pop() == "" and len(documents) == split.documents
        held_out = name == "held_out"
        assert all(is_held_out(text[:100], 0.1) == held_out for text in documents)
        found += documents
    assert sorted(found) == sorted(text for text in ["a" * 100 + "last", read, *TEXTS[:60]] if text)
