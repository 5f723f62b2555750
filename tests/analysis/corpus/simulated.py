"""Corpus results of any size without a model: decisions that depend on the tokens in a known way."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.corpus.schema import (
    DOCUMENTS,
    TEXT_SCHEMA,
    TEXTS,
    TOKENS,
    CorpusRun,
    Flag,
    Levels,
    Options,
    Shard,
    document_schema,
    name_of,
    sha256_of,
    token_schema,
)

NAN = float("nan")


def simulate(
    folder: Path,
    documents: int,
    length: int = 100,
    *,
    per_shard: int = 10,
    seed: int = 0,
    texts: bool = True,
    levels: int = 2,
    vocabulary: int = 500,
) -> CorpusRun:
    """Write the shards of a result.

    The score of a token at Level 1 is its surprisal plus noise, and at Level 2, inside, that of its type alone; both
    keep scores above 0. Further levels stand beside Level 1, and each keeps a random half of all tokens. Ids follow
    Zipf's law, and digits are never kept at Level 1.

    Args:
        folder: of the result.
        documents: how many.
        length: tokens of each.
        per_shard: documents of each shard.
        seed: of the random numbers.
        texts: whether texts are written.
        levels: number of levels, at least 2.
        vocabulary: number of ids.
    """
    rng, shards = np.random.default_rng(seed), []
    zipf = 1 / np.arange(1, vocabulary + 1)
    for kind in (TOKENS, DOCUMENTS, *([TEXTS] if texts else [])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, documents, per_shard)):
        names = np.arange(first, min(first + per_shard, documents), dtype=np.int32)
        size = len(names) * length
        ids = rng.choice(vocabulary, size=size, p=zipf / zipf.sum()).astype(np.int32)
        position = np.tile(np.arange(length, dtype=np.int32), len(names))
        surprisal = rng.normal(2, 1, size)
        digit = ids % 10 == 3
        outer = surprisal - 2 + rng.normal(0, 0.5, size) - 20 * digit
        inner = (ids % 7 - 3.0) + 0.1
        kept = (outer > 0).astype(np.uint16) | ((outer > 0) & (inner > 0)).astype(np.uint16) << 1
        half = np.float16
        table = {
            "document": np.repeat(names, length),
            "position": position,
            "id": ids,
            "kept": kept,
            "score_1": outer.astype(half),
            "score_2": np.where(outer > 0, inner, NAN).astype(half),
            "norm_1": rng.gamma(9, 1, size).astype(half),
            "norm_2": np.where(outer > 0, rng.gamma(9, 1, size), NAN).astype(half),
            "surprisal": np.where(position == 0, NAN, surprisal).astype(half),
            "entropy": np.where(position == 0, NAN, rng.gamma(4, 1, size)).astype(half),
            "kind": np.where(digit, 2, 0).astype(np.uint8),
            "script": np.where(digit, 1, 3).astype(np.uint8),
            "segment": np.zeros(size, dtype=np.uint8),
            "word": np.where(digit, 0, 1).astype(np.uint8),
            "flags": (np.where(digit, 0, int(Flag.WORD_START)) | np.where(position < 4, 1024, 0)).astype(np.uint16),
        }
        for level in range(3, levels + 1):
            scores = rng.normal(0, 1, size)
            table["kept"] |= (scores > 0).astype(np.uint16) << (level - 1)
            table |= {f"score_{level}": scores.astype(half), f"norm_{level}": rng.gamma(9, 1, size).astype(half)}
        schema = token_schema(levels)
        pieces = [f" w{each:03d}" for each in ids.tolist()]
        text_of = ["".join(pieces[row * length : (row + 1) * length]) for row in range(len(names))]
        about = {
            "document": names,
            "name": [f"document {name}" for name in names],
            "source": ["even" if name % 2 == 0 else "odd" for name in names],
            "tokens": np.full(len(names), length, dtype=np.int32),
            "windows": np.ones(len(names), dtype=np.int32),
            "digest": [hashlib.sha256(text.encode()).hexdigest() for text in text_of],
            "loss": np.full(len(names), 2, dtype=np.float32),
            **{
                f"kept_{level}": (table["kept"] >> (level - 1) & 1).reshape(-1, length).sum(1).astype(np.int32)
                for level in range(1, levels + 1)
            },
        }
        files = {
            name_of(TOKENS, number): pa.table(table, schema=schema),
            name_of(DOCUMENTS, number): pa.table(about, schema=document_schema(levels)),
        }
        if texts:
            starts = np.arange(length, dtype=np.int32) * 5
            rows = {
                "document": names,
                "text": text_of,
                "starts": [starts] * len(names),
                "ends": [starts + 5] * len(names),
            }
            files[name_of(TEXTS, number)] = pa.table(rows, schema=TEXT_SCHEMA)
        for name, content in files.items():
            pq.write_table(content, folder / name)
        shards.append(Shard(number, len(names), size, {name: sha256_of(folder / name) for name in files}))
    run = CorpusRun(
        checkpoint="simulated",
        digest="0" * 64,
        structure="T(T(T)T)T" + "(T)T" * (levels - 2),
        levels=Levels(
            ["subllm"] * levels,
            [0, 1] + [0] * (levels - 2),
            [0.5] * levels,
            [0, 1, 2, 1, 0] + [block for level in range(3, levels + 1) for block in (level, 0)],
            [0.0] * levels,
            [1] * levels,
            ["level"] * levels,
            [-1] * levels,
            [[0.5]] * levels,
        ),
        tokenizer="0" * 64,
        vocabulary=vocabulary,
        special_ids=[],
        dense="",
        attention_kernel="sdpa",
        device="none",
        versions="none",
        sources=["simulated"],
        options=Options(texts=texts),
        complete=True,
        skipped=0,
        skipped_documents=[],
        shards=shards,
        seconds=0.0,
        workers=1,
        engine="here",
    )
    run.write(folder)
    return run
