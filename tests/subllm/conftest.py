"""A small text, and a training on it."""

import json

import pytest

from subllm.text.packed import pack
from subllm.text.tokenizer import train_tokenizer
from subllm.train.config import TrainConfig
from subllm.train.loop import train
from tests.subllm.runs.jobs import SMALL


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folder of packed text."""
    folder = tmp_path_factory.mktemp("text")
    texts = [
        f"the sum of {a} and {b} is {a + b}, and the sum of {b} and {a} is the same."
        for a in range(40)
        for b in range(20)
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return pack([folder / "text.jsonl"], train_tokenizer(texts, 300), folder / "packed", held_out=0.1).folder


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """Folder of a training that nothing disturbed; do not write to it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(TrainConfig.of(SMALL), data, out)
    return out
