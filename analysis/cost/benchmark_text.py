"""The text that measurements read: technical English that every Python carries."""

import pydoc_data.topics
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from subllm.checkpoints.load import Checkpoint

from ..errors import AnalysisError

NEW_TOKENS = 48  # after every prompt, for the time of decoding


def prompt_of(checkpoint: Checkpoint, length: int, batch: int = 1) -> Tensor:
    """(B, length + new tokens) ids of technical English, another part of it in every row.

    Args:
        checkpoint: whose tokenizer and positions count.
        length: of every prompt, in tokens.
        batch: prompts.

    Raises:
        AnalysisError: if the length or the batch is not positive, or the length exceeds the model's positions or the
            text.
    """
    ids = _ids(checkpoint.tokenizer)
    longest = min(checkpoint.model.config.max_position_embeddings, ids.shape[0] - NEW_TOKENS)
    if not 0 < length <= longest:
        raise AnalysisError(
            "A prompt of {length:,} tokens cannot be measured; allowed are 1 to {longest:,}.",
            length=length,
            longest=longest,
        )
    if batch < 1:
        raise AnalysisError("A batch of {batch} cannot be measured; it must be 1 or more.", batch=batch)
    whole = length + NEW_TOKENS
    last = ids.shape[0] - whole
    starts = [(1000 + row * length) % (last + 1) if last else 0 for row in range(batch)]
    return torch.stack([ids[start : start + whole] for start in starts]).to(checkpoint.model.device)


@lru_cache(maxsize=2)  # a sweep asks for every setting
def _ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(N,) ids of the whole text."""
    ids: Tensor = tokenizer(benchmark_text(), verbose=False, return_tensors="pt")["input_ids"][0]
    return ids


def benchmark_text() -> str:
    """Technical English that every Python carries: the reference manual's topics."""
    return "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
