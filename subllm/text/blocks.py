"""Blocks of equal length: the sequences that a model is trained and evaluated on.

Training from scratch reads packed text once, in order or shuffled (`Blocks`). A conversion sees a small part of its
text; it draws documents and tokenises only those (`DrawnBlocks`).
"""

import random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .documents import Documents
from .packed import Packed

LONGEST = 8_000  # characters that are read of a drawn document, from a random place in it


class Blocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Blocks of packed text, read from the files as they are used, in an order that a seed determines.

    Args:
        packed: the text.
        split: one of `subllm.text.packed.SPLITS`.
        length: tokens per block.
        count: number of blocks, by default all of them once; with more, the blocks repeat in another order.
        seed: seed of the order; None keeps the order of the files.

    Raises:
        DataError: if there is not even one block.
    """

    def __init__(
        self, packed: Packed, split: str, length: int, *, count: int | None = None, seed: int | None = None
    ) -> None:
        self._files = packed.ids(split)
        blocks = [len(file) // length for file in self._files]
        self._ends = np.cumsum(blocks)
        self.available = sum(blocks)
        if not self.available:
            raise DataError(
                f"The part {split!r} of {packed.folder} has no shard with the {length:,} tokens of one block (tokens "
                f"in all: {packed.splits[split].tokens:,}); give more text or shorter blocks."
            )
        self._length, self._seed = length, seed
        self._count = self.available if count is None else count
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Block number `index`: `input_ids` (length,), and the same as `labels`, which the model shifts."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        epoch, place = divmod(index, self.available)
        if self._seed is not None:
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, np.random.default_rng((self._seed, epoch)).permutation(self.available))
            place = int(self._order[1][place])
        shard = int(np.searchsorted(self._ends, place, side="right"))
        start = (place - (int(self._ends[shard - 1]) if shard else 0)) * self._length
        ids = torch.from_numpy(self._files[shard][start : start + self._length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class DrawnBlocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Endless blocks drawn from documents; those of a block come from one source, each with the same chance.

    So every source has the same share of the blocks, whether its documents are short chats or books.

    Args:
        documents: the text.
        tokenizer: tokenizer of the model; its end-of-text token separates documents.
        length: tokens per block.
        held_out: whether to draw from the held-out documents or from the others.
        seed: seed of the drawing.

    Raises:
        DataError: if the part has no document, or the tokenizer has no end-of-text token.
    """

    def __init__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, *, length: int, held_out: bool, seed: int
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("The tokenizer has no end-of-text token, so documents could not be told apart.")
        self._sources = documents.sources(held_out)
        if not self._sources:
            raise DataError(
                f"The text has no document for the {'held-out' if held_out else 'training'} part "
                f"({len(documents)} in all); give more documents."
            )
        self.tokenizer, self._length, self._seed = tokenizer, length, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Block number `index` as `input_ids` (length,); the same every time."""
        rng = random.Random(f"{self._seed}:{index}")
        documents = rng.choice(self._sources)
        ids: list[int] = []
        while len(ids) < self._length:
            document = rng.choice(documents)
            start = rng.randrange(max(len(document) - LONGEST, 0) + 1)
            ids += self.tokenizer(document[start : start + LONGEST], add_special_tokens=False)["input_ids"]
            ids.append(self.tokenizer.eos_token_id)
        return {"input_ids": torch.tensor(ids[: self._length])}

    def batch(self, index: int, size: int) -> Tensor:
        """Batch number `index` of `size` blocks: (size, length) token ids."""
        return torch.stack([self[index * size + row]["input_ids"] for row in range(size)])
