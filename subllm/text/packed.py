"""Packed text: shards of token ids that training reads, and the command that writes them.

    subllm data tokenizer --text corpus --vocabulary 8192 --out tokenizer
    subllm data pack --text corpus --tokenizer tokenizer --out packed

Text is read piece by piece and never has to fit in memory. Repeated pieces are left out. A share of the
documents, chosen by a digest of their text, is held out for evaluation.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..atomic import added_whole, full_disk_reported, written_whole
from ..checkpoints.files import read_json
from ..command import Arguments, command, positive
from ..errors import DataError, first_line
from .sources import HELD_OUT, is_held_out, read_pieces
from .tokenizer import train_tokenizer

SPLITS = ("train", "held_out")
META = "packed.json"
_FORMAT = 1
_ID_BYTES = {"uint16": 2, "uint32": 4}  # by dtype
_TOGETHER = 64  # pieces that are tokenised at once
_SHARD_TOKENS = 50_000_000


@dataclass
class Split:
    """One part of packed text.

    Attributes:
        shards: file name and number of tokens of each shard.
        documents: number of documents.
    """

    shards: list[tuple[str, int]] = field(default_factory=list)
    documents: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(count for _, count in self.shards)


@dataclass(frozen=True)
class Packed:
    """Contents of a folder of packed text, as described by its `packed.json`.

    Attributes:
        folder: folder of the shards and their tokenizer.
        vocabulary: size of the tokenizer's vocabulary.
        dtype: NumPy dtype of the ids.
        digest: sha256 of the tokenizer and of all ids as they were packed; by it a run that resumes knows its text. The
            files are not compared with it.
        duplicates: number of pieces that were left out.
        splits: parts by name, see `SPLITS`.
    """

    folder: Path
    vocabulary: int
    dtype: str
    digest: str
    duplicates: int
    splits: dict[str, Split]

    @classmethod
    def read(cls, folder: Path) -> "Packed":
        """Open a folder that `pack` wrote.

        Raises:
            DataError: if the folder holds no packed text, or is incomplete.
        """
        try:
            meta: Any = read_json(folder / META)
            if meta["format"] != _FORMAT:
                raise DataError(f"{folder} was packed by another version; pack the text again.")
            packed = cls(
                folder=folder,
                vocabulary=int(meta["vocabulary"]),
                dtype=str(meta["dtype"]),
                digest=str(meta["digest"]),
                duplicates=int(meta["duplicates"]),
                splits={name: _split(meta["splits"][name]) for name in SPLITS},
            )
            if packed.dtype not in _ID_BYTES:
                raise ValueError(f"its dtype is {packed.dtype!r}; allowed are {', '.join(_ID_BYTES)}")
        except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            reason = f"there is no {error}" if isinstance(error, KeyError) else first_line(error)
            raise DataError(f"{folder} is not packed text ({reason}); make it with: subllm data pack") from error
        size = _ID_BYTES[packed.dtype]
        for split in packed.splits.values():
            for name, count in split.shards:
                path = folder / name
                found, expected = path.stat().st_size if path.is_file() else 0, count * size
                if found != expected:
                    raise DataError(f"{path} has {found:,} bytes, expected {expected:,}; pack the text again.")
        return packed

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the text was packed with."""
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    def ids(self, split: str) -> list[np.memmap]:
        """Token ids (N,) of each shard of a part: all are checked now, and read from the files as they are used.

        Raises:
            DataError: if one is not in the vocabulary.
        """
        shards = []
        for name, tokens in self.splits[split].shards:
            shard = np.memmap(self.folder / name, dtype=self.dtype, mode="r", shape=(tokens,))
            largest = int(shard.max())
            if largest >= self.vocabulary:
                raise DataError(
                    f"{self.folder / name} has the token id {largest}, and the ids of its vocabulary are 0 to "
                    f"{self.vocabulary - 1:,}; pack the text again."
                )
            shards.append(shard)
        return shards


def _split(entry: Any) -> Split:
    """A part as packed.json holds it, with shards in its folder only."""
    shards = [(Path(name).name, int(count)) for name, count in entry["shards"]]
    if any(count < 1 for _, count in shards):
        raise ValueError("a shard has no tokens")
    return Split(shards, int(entry["documents"]))


class _Writer:
    """Writes the ids of one part to shards as they arrive."""

    def __init__(self, folder: Path, name: str, dtype: str, shard_tokens: int) -> None:
        self._folder, self._name, self._dtype, self._most = folder, name, dtype, shard_tokens
        self.split, self.digest = Split(), hashlib.sha256()

    def write(self, ids: list[int]) -> None:
        data = np.asarray(ids, dtype=self._dtype)
        while len(data):
            if not self.split.shards or self.split.shards[-1][1] >= self._most:
                self.split.shards.append((f"{self._name}-{len(self.split.shards):05d}.bin", 0))
            name, count = self.split.shards[-1]
            now, data = data[: self._most - count], data[self._most - count :]
            with (self._folder / name).open("ab") as file:
                file.write(now.tobytes())
            self.digest.update(now.tobytes())
            self.split.shards[-1] = (name, count + len(now))


def pack(
    paths: Iterable[Path | str],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    held_out: float = HELD_OUT,
    shard_tokens: int = _SHARD_TOKENS,
) -> Packed:
    """Turn text into shards of token ids, in which an end-of-text token follows every document.

    Args:
        paths: see `subllm.text.sources.read_pieces`.
        tokenizer: tokenizer with an end-of-text token; it is saved with the shards.
        out: folder to write, which must not exist.
        held_out: share of the documents to hold out for evaluation.
        shard_tokens: largest number of ids per shard.

    Raises:
        DataError: if the text cannot be read, is too short for both parts, or `out` exists.
        DiskFullError: if the disk is full.
    """
    if out.exists():
        raise DataError(f"{out} exists already; give another folder, or remove it.")
    if tokenizer.eos_token_id is None:
        raise DataError("The tokenizer has no end-of-text token, so documents could not be told apart.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_reported(out), written_whole(out) as partial:
        partial.mkdir()
        packed = _pack_into(partial, paths, tokenizer, held_out, shard_tokens)
    return replace(packed, folder=out)


def _pack_into(
    folder: Path, paths: Iterable[Path | str], tokenizer: PreTrainedTokenizerBase, held_out: float, shard_tokens: int
) -> Packed:
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    writers = {name: _Writer(folder, name, dtype, shard_tokens) for name in SPLITS}
    seen: set[bytes] = set()
    duplicates = 0
    name, begun = SPLITS[0], False  # where the document goes, and whether some of it is there
    pieces = iter(tqdm(read_pieces(paths), unit=" pieces", disable=None))
    while group := list(islice(pieces, _TOGETHER)):
        encoded = tokenizer([piece.text for piece in group], add_special_tokens=False, verbose=False)["input_ids"]
        for piece, ids in zip(group, encoded, strict=True):
            if piece.first:
                name, begun = SPLITS[is_held_out(piece.text, held_out)], False
            digest = hashlib.sha256(piece.text.encode()).digest()[:16]
            new = digest not in seen
            seen.add(digest)
            duplicates += not new
            begun = begun or new
            if begun:  # a document ends even if its last piece is a duplicate
                writers[name].write([*(ids if new else []), *([tokenizer.eos_token_id] if piece.last else [])])
                writers[name].split.documents += piece.last
    total = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for name, writer in writers.items():
        if not writer.split.tokens:
            raise DataError(
                f"No document fell into the part {name!r} (held out is {held_out:.0%} of the documents, chosen by a "
                "digest of their text); give more documents, or another share."
            )
        total.update(writer.digest.digest())
    splits = {name: writer.split for name, writer in writers.items()}
    packed = Packed(folder, len(tokenizer), dtype, total.hexdigest(), duplicates, splits)
    tokenizer.save_pretrained(folder)
    meta = asdict(packed) | {"format": _FORMAT}
    del meta["folder"]
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n")
    return packed


def _tokenizer(arguments: argparse.Namespace) -> None:
    pieces = islice(read_pieces(arguments.text), arguments.most)
    tokenizer = train_tokenizer((piece.text for piece in pieces), arguments.vocabulary)
    with full_disk_reported(arguments.out), added_whole(arguments.out) as partial:
        tokenizer.save_pretrained(partial)
    print(f"Wrote {arguments.out}")  # noqa: T201


def _pack(arguments: argparse.Namespace) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{arguments.tokenizer} is not a tokenizer: {first_line(error)}") from error
    packed = pack(arguments.text, tokenizer, arguments.out, held_out=arguments.held_out)
    for name, split in packed.splits.items():
        print(f"{name}: {split.tokens:,} tokens of {split.documents:,} documents")  # noqa: T201
    print(f"Wrote {arguments.out}; {packed.duplicates:,} duplicates left out")  # noqa: T201


@command(DataError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="subllm data", description="Prepare text for training.")
    commands = parser.add_subparsers(required=True)
    tokenizer = commands.add_parser("tokenizer", help="train a byte-level BPE tokenizer")
    tokenizer.add_argument("--text", nargs="+", required=True, help="files, folders or names of hub datasets")
    tokenizer.add_argument("--vocabulary", type=int, default=8192, help="tokens (default: 8192)")
    tokenizer.add_argument("--most", type=positive, help="read at most this many documents")
    tokenizer.add_argument("--out", type=Path, required=True, help="folder to write")
    tokenizer.set_defaults(run=_tokenizer)
    packing = commands.add_parser("pack", help="turn text into shards of token ids")
    packing.add_argument("--text", nargs="+", required=True, help="files, folders or names of hub datasets")
    packing.add_argument("--tokenizer", required=True, help="folder or hub name of a tokenizer")
    packing.add_argument(
        "--held-out", type=float, default=HELD_OUT, help=f"share of documents to hold out (default: {HELD_OUT})"
    )
    packing.add_argument("--out", type=Path, required=True, help="folder to write")
    packing.set_defaults(run=_pack)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
