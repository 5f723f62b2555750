"""A trained tokenizer knows all text."""

import pytest

from subllm import DataError
from subllm.text.tokenizer import train_tokenizer
from tests.subllm.text.conftest import TEXTS


def test_no_text_is_unknown_to_a_trained_tokenizer(tokenizer):
    for text in ("naïve 🦙 \x00 日本", "1234", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4
    assert 257 < len(tokenizer) <= 400


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused():
    with pytest.raises(DataError, match="257"):
        train_tokenizer(TEXTS, 100)
