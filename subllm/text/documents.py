"""Text for conversion: documents from files, tokenised and cut into blocks of equal length."""

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .sources import is_held_out, read_pieces


def read_documents(paths: list[Path]) -> dict[str, list[str]]:
    """Documents per file; see `subllm.text.sources.read_pieces`."""
    documents: dict[str, list[str]] = {}
    for piece in read_pieces(paths):
        documents.setdefault(piece.source, []).append(piece.text)
    return documents


class TokenBlocks:
    """Endless blocks of tokens drawn from documents, those of a block from one file, every file with the same chance.

    So a file counts by its blocks: one of short chats gets as many tokens as one of books.

    Args:
        documents: documents per file.
        tokenizer: turns them into ids; documents are separated by its eos token.
        length: tokens per block.
        held_out: draw from the held-out documents, else from the others.
        seed: of the drawing.
        longest: characters read of one document at most, from a random place.

    Raises:
        DataError: if no document belongs to the part asked for, or the tokenizer has no end of a text.
    """

    def __init__(
        self,
        documents: dict[str, list[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        held_out: bool,
        seed: int,
        longest: int = 8_000,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no end-of-text token, so documents could not be told apart.")
        parts = {f: [d for d in texts if is_held_out(d) == held_out] for f, texts in documents.items()}
        self._files = [texts for _, texts in sorted(parts.items()) if texts]
        if not self._files:
            raise DataError(
                f"The text has no document for the {'held-out' if held_out else 'training'} part "
                f"({sum(map(len, documents.values()))} in all); give more documents."
            )
        self.tokenizer, self._length, self._longest = tokenizer, length, longest
        self._seed = seed

    def block(self, index: int) -> Tensor:
        """Block number `index` as (length,) token ids; the same every time."""
        rng = random.Random(f"{self._seed}:{index}")
        documents = rng.choice(self._files)
        ids: list[int] = []
        while len(ids) < self._length:
            document = rng.choice(documents)
            start = rng.randrange(max(len(document) - self._longest, 0) + 1)
            ids += self.tokenizer(document[start : start + self._longest], add_special_tokens=False)["input_ids"]
            ids.append(self.tokenizer.eos_token_id)
        return torch.tensor(ids[: self._length])

    def batch(self, index: int, size: int) -> Tensor:
        """Batch number `index` of `size` blocks: (size, length) token ids."""
        return torch.stack([self.block(index * size + row) for row in range(size)])
