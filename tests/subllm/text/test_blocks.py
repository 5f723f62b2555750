"""Blocks are the same every time: of packed text all of it once per round, of documents those that a seed draws."""

import json
import random

import pytest

from subllm import DataError
from subllm.text.blocks import Blocks, DrawnBlocks
from subllm.text.documents import Documents
from subllm.text.packed import Packed, pack
from subllm.text.sources import is_held_out, read_pieces
from tests.subllm.text.conftest import TEXTS


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


def test_text_shorter_than_a_block_is_refused(corpus, tokenizer, tmp_path):
    packed = pack([corpus], tokenizer, tmp_path / "packed", held_out=0.1)
    with pytest.raises(DataError, match="tokens of one block"):
        Blocks(packed, "held_out", 10_000)


def drawn_in_memory(paths, tokenizer, length, held_out, seed, index):
    """Block number `index`, drawn from a list of all documents of each file."""
    files = {}
    for piece in read_pieces(paths):
        if is_held_out(piece.text) == held_out:
            files.setdefault(piece.source, []).append(piece.text)
    rng = random.Random(f"{seed}:{index}")
    documents = rng.choice([texts for _, texts in sorted(files.items())])
    ids = []
    while len(ids) < length:
        document = rng.choice(documents)
        start = rng.randrange(max(len(document) - 8000, 0) + 1)
        ids += [*tokenizer(document[start : start + 8000])["input_ids"], tokenizer.eos_token_id]
    return ids[:length]


@pytest.mark.parametrize("held_out", [False, True])
def test_blocks_drawn_from_disk_are_those_drawn_from_memory(corpus, tokenizer, held_out):
    long = " ".join(f"{text} Ümläut 🦙" for text in TEXTS)  # characters and bytes differ, and more than is read at once
    more = [long, *(f"{text} Once more." for text in TEXTS)]
    (corpus / "z.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in more))
    blocks = DrawnBlocks(Documents([corpus]), tokenizer, length=64, held_out=held_out, seed=5)
    for index in range(40):
        assert blocks[index]["input_ids"].tolist() == drawn_in_memory([corpus], tokenizer, 64, held_out, 5, index)
    assert blocks.batch(3, 4).tolist() == [blocks[12 + row]["input_ids"].tolist() for row in range(4)]


def test_a_part_without_documents_is_refused(tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text("only one document")
    with pytest.raises(DataError, match=r"no document for the held-out part \(1 in all\)"):
        DrawnBlocks(Documents([tmp_path]), tokenizer, length=8, held_out=True, seed=0)
