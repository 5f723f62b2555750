"""Shared by the tests of traces: one checkpoint, and one trace of it."""

import pytest

from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint

TEXT = "the cat sat on the mat 🦙 and then\nthe dog 你好 sat on the cat"


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint, "cpu", "float32")


@pytest.fixture(scope="session")
def trace(checkpoint):
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    return record_trace(checkpoint, prompt, RunOptions(new_tokens=12), dense=load_dense(checkpoint), name="tiny")
