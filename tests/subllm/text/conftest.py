"""Text of three formats, and a tokenizer for it."""

import json

import pandas as pd
import pytest

from subllm.text.tokenizer import train_tokenizer

TEXTS = [f"Document {number} tells of the number {number * 7} and of nothing else." for number in range(200)]


@pytest.fixture(scope="session")
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
