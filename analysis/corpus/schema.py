"""What a folder of corpus results holds: tables of tokens, documents and texts in shards, and `corpus.json` about all.

A document is read in windows of as many tokens as the run says, which know nothing of each other: the token at
`position` p of a document stands at place p modulo the window's length in what the model read. Row p of a document
follows row p - 1, and documents follow each other in the order of their numbers, so that every document's tokens lie
together in one shard.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from subllm.atomic import written_whole
from subllm.errors import first_line

from ..errors import CorpusError
from ..trace.token_classes import KINDS as _KINDS

FORMAT = 1
RUN = "corpus.json"
TOKENS, DOCUMENTS, TEXTS, SUMMARY = "tokens", "documents", "texts", "summary"  # folders
INPUT = "input"  # folder of the texts of a run that is not finished
MOST_SKIPPED = 1_000  # documents left out that are named

KINDS = tuple(_KINDS)
"""Kinds of tokens by their characters, in the order of their codes; see `analysis.trace.token_classes.KINDS`."""

SCRIPTS = (
    "spaces", "digits", "symbols", "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Cyrillic", "Greek",
    "Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Telugu", "Thai", "Georgian", "Armenian", "Ethiopic", "Khmer",
    "other",
)  # fmt: skip
"""Script of a token's first letter, or what it is without one; in the order of their codes."""

SEGMENTS = ("text", "mark", "system", "user", "assistant")
"""Part of a chat that a token stands in: a mark of the template, or what a role says; "text" outside of a chat."""

WORDS = (
    "none", "content", "article", "pronoun", "determiner", "preposition", "conjunction", "auxiliary", "negation",
    "question", "adverb", "discourse", "particle",
)  # fmt: skip
"""Closed class of the word that a token is part of; "none" where there is no word, "content" for all other words."""


class Flag(IntFlag):
    """Bits of the column `flags`: what is true of a token and its place."""

    SPECIAL = 1  # a special token of the tokenizer
    WORD_START = 2  # the first token of a word
    WORD_INSIDE = 4  # a later token of a word
    REPEATED = 8  # the same id stands before it in the window
    LINE_START = 16  # the first visible token of a line
    INDENT = 32  # white space before the first visible character of a line
    QUOTED = 64  # between quotation marks
    BRACKETED = 128  # between brackets
    CODE = 256  # on a line that looks like code or JSON, or in a fenced block
    CAPITAL = 512  # its first letter is a capital
    WINDOW_START = 1024  # one of the first four tokens of a window
    DENSE_AGREES = 2048  # the dense model ranked the same next token first at this place; only with a dense model
    QUESTION = 4096  # in a sentence that ends with a question mark


FIRST_TOKENS = 4  # of a window, which have `Flag.WINDOW_START`


def kept_type(levels: int) -> pa.DataType:
    """Narrowest integer with a bit for every level.

    Raises:
        CorpusError: if there are more than 64.
    """
    for bits, kind in ((16, pa.uint16()), (32, pa.uint32()), (64, pa.uint64())):
        if levels <= bits:
            return kind
    raise CorpusError("The checkpoint has {levels} levels; a table of tokens has room for 64.", levels=levels)


def token_schema(levels: int, *, dense: bool = False, attention: bool = False) -> pa.Schema:
    """Columns of `tokens/NNNNN.parquet`, one row a token.

    `kept` has bit l - 1 where Level l kept the token; whether the token reached the level follows from the parents,
    see `CorpusRun.reached`. Floats are NaN where there is no value: `score_l` where the token did not reach Level l or
    its router does not score, `norm_l` where it did not reach it. `norm_l` is the L2 norm of the stream before Level l.
    `surprisal` and `entropy` (nats) are of the distribution that predicts the token, NaN at the first token of a
    window. `dense_surprisal` is the dense model's. `attention` is the mean attention that later tokens of the window
    pay to the token, over the heads of the last block before Level 1; NaN at the last token.

    Args:
        levels: S, number of levels.
        dense: whether a dense model read the text as well.
        attention: whether attention was measured.
    """
    numbers = range(1, levels + 1)
    return pa.schema(
        [
            pa.field("document", pa.int32(), nullable=False),
            pa.field("position", pa.int32(), nullable=False),
            pa.field("id", pa.int32(), nullable=False),
            pa.field("kept", kept_type(levels), nullable=False),
            *(pa.field(f"score_{level}", pa.float16(), nullable=False) for level in numbers),
            *(pa.field(f"norm_{level}", pa.float16(), nullable=False) for level in numbers),
            pa.field("surprisal", pa.float16(), nullable=False),
            pa.field("entropy", pa.float16(), nullable=False),
            *([pa.field("dense_surprisal", pa.float16(), nullable=False)] if dense else []),
            *([pa.field("attention", pa.float16(), nullable=False)] if attention else []),
            pa.field("kind", pa.uint8(), nullable=False),  # of `KINDS`
            pa.field("script", pa.uint8(), nullable=False),  # of `SCRIPTS`
            pa.field("segment", pa.uint8(), nullable=False),  # of `SEGMENTS`
            pa.field("word", pa.uint8(), nullable=False),  # of `WORDS`
            pa.field("flags", pa.uint16(), nullable=False),  # `Flag`
        ]
    )


def document_schema(levels: int, *, dense: bool = False) -> pa.Schema:
    """Columns of `documents/NNNNN.parquet`, one row a document, in the order of their numbers.

    `loss` and `dense_loss` are mean surprisals in nats (float32, of unrounded values), NaN for a document of one token.
    `kept_l` is the number of tokens that Level l kept. `digest` is the sha256 of the text.
    """
    return pa.schema(
        [
            pa.field("document", pa.int32(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("windows", pa.int32(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("loss", pa.float32(), nullable=False),
            *([pa.field("dense_loss", pa.float32(), nullable=False)] if dense else []),
            *(pa.field(f"kept_{level}", pa.int32(), nullable=False) for level in range(1, levels + 1)),
        ]
    )


TEXT_SCHEMA = pa.schema(
    [
        pa.field("document", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("starts", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("ends", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    ]
)
"""Columns of `texts/NNNNN.parquet`: each document's text, and the characters where its tokens begin and end."""


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a result, beside the checkpoint and the texts.

    Attributes:
        window: tokens that the model reads together, those at its beginning that the tokenizer adds included.
        rows: rows of a batch.
        row_tokens: tokens of a row, which holds as many windows as fit, and at least one.
        shard_characters: characters of a shard's documents, about.
        tokens: read documents only until there are this many tokens; None for all.
        dense: whether the dense model reads the text as well.
        attention: whether attention is measured.
        texts: whether the texts are kept.
        device: kind of the device, such as "cpu" or "cuda".
        dtype: of the computation.
        threads: of each worker on a CPU.
    """

    window: int = 2048
    rows: int = 1
    row_tokens: int = 512
    shard_characters: int = 1_000_000
    tokens: int | None = None
    dense: bool = False
    attention: bool = False
    texts: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class Levels:
    """What is the same for all tokens: the fields of `analysis.Routing` that have no axis of tokens, as lists.

    Attributes:
        routers: (S,) names.
        parents: (S,) level whose tokens each router decides about; 0 is the whole sequence.
        retention_ratios: (S,) nominal shares.
        block_levels: (L,) level of each block.
        thresholds: (S,) that scores are compared with; NaN where the router does not score.
        strides: (S,) tokens in a group of a merging router; 1 for all others.
        site_kinds: (S,) as in `analysis.Routing`.
        site_blocks: (S,) as in `analysis.Routing`.
        bypass_scale: (S, D) β, to four digits; NaN where there is no bypass.
    """

    routers: list[str]
    parents: list[int]
    retention_ratios: list[float]
    block_levels: list[int]
    thresholds: list[float]
    strides: list[int]
    site_kinds: list[str]
    site_blocks: list[int]
    bypass_scale: list[list[float]]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Levels":
        """Read what `dataclasses.asdict` made, after `without_nan` and a way through JSON."""
        missing = float("nan")
        thresholds = [missing if value is None else value for value in entry["thresholds"]]
        scale = [[missing if value is None else value for value in row] for row in entry["bypass_scale"]]
        return cls(**{**entry, "thresholds": thresholds, "bypass_scale": scale})


@dataclass(frozen=True)
class Skipped:
    """A document that was left out.

    Attributes:
        name: of the document.
        reason: what is wrong with it.
        shard: number of the shard whose worker could not read it; None if it is in none.
    """

    name: str
    reason: str
    shard: int | None = None


@dataclass(frozen=True)
class Shard:
    """A shard that is complete.

    Attributes:
        number: of the shard, from 0.
        documents: rows of its table of documents.
        tokens: rows of its table of tokens.
        files: sha256 of each of its files, by the name inside the folder, such as "tokens/00000.parquet".
        skipped: number of its documents that could not be read.
        seconds: that it took.
    """

    number: int
    documents: int
    tokens: int
    files: dict[str, str]
    skipped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CorpusRun:
    """What `corpus.json` says about a folder of corpus results.

    Attributes:
        checkpoint: name of the checkpoint.
        digest: sha256 of its configuration and weights.
        structure: of the model.
        levels: what is the same for all tokens.
        tokenizer: sha256 of the tokenizer's vocabulary.
        vocabulary: number of ids.
        special_ids: ids of special tokens.
        dense: dense model of the comparison, as in `analysis.Provenance`; "" without one.
        attention_kernel: attention kernel.
        device: display name of the device of the first worker.
        versions: of torch, transformers and pyarrow.
        sources: what was read, as it was named.
        options: what else decides the bytes.
        complete: False for a run that was stopped; what it lists is whole.
        skipped: number of documents that were left out.
        skipped_documents: the first of them, at most `MOST_SKIPPED`.
        shards: complete shards, by their numbers.
        seconds: that the workers computed, all together; the sum of the shards'.
        workers: how many there were.
        engine: "local", "ray" or "here".
    """

    checkpoint: str
    digest: str
    structure: str
    levels: Levels
    tokenizer: str
    vocabulary: int
    special_ids: list[int]
    dense: str
    attention_kernel: str
    device: str
    versions: str
    sources: list[str]
    options: Options
    complete: bool
    skipped: int
    skipped_documents: list[Skipped]
    shards: list[Shard]
    seconds: float
    workers: int
    engine: str

    @property
    def num_levels(self) -> int:
        """S, the number of levels."""
        return len(self.levels.parents)

    @property
    def tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Number of documents in all shards."""
        return sum(shard.documents for shard in self.shards)

    def kept(self, kept: np.ndarray) -> np.ndarray:
        """(S, N) bool whether each level kept each token, from the column `kept` (N,)."""
        bits = np.arange(self.num_levels, dtype=kept.dtype)[:, None]
        found: np.ndarray = (kept[None] >> bits & kept.dtype.type(1)).astype(np.bool_)
        return found

    def reached(self, kept: np.ndarray) -> np.ndarray:
        """(S, N) bool whether each token reached each level, from the column `kept` (N,)."""
        everywhere = np.ones((1, len(kept)), dtype=np.bool_)
        found: np.ndarray = np.concatenate([everywhere, self.kept(kept)])[self.levels.parents]
        return found

    def paths(self, folder: Path, kind: str = TOKENS) -> Iterator[Path]:
        """Files of one kind in the order of the shards: `TOKENS`, `DOCUMENTS` or `TEXTS`."""
        return (folder / name_of(kind, shard.number) for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write `corpus.json` in one step."""
        content = {"format": FORMAT} | asdict(self)
        with written_whole(folder / RUN) as partial:
            partial.write_text(json.dumps(without_nan(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "CorpusRun":
        """Read `corpus.json`.

        Raises:
            CorpusError: if there is none, it is of another format, or it cannot be read.
        """
        path = folder / RUN
        if not path.is_file():
            raise CorpusError(
                "{folder} has no corpus.json, so it is no result of subllm corpus, or one that is not finished; in "
                "that case run the same command again.",
                folder=str(folder),
            )
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CorpusError(
                "{path} cannot be read ({error}); copy the folder again, or run subllm corpus again.",
                path=str(path),
                error=first_line(error),
            ) from error
        found = content.pop("format", None) if isinstance(content, dict) else None
        if found != FORMAT:
            raise CorpusError(
                "{path} has the format {found!r}, and this version reads {known}; run subllm corpus again, or read it "
                "with the version that wrote it.",
                path=str(path),
                found=found,
                known=FORMAT,
            )
        try:
            content["levels"] = Levels.from_json(content["levels"])
            content["options"] = Options(**content["options"])
            content["skipped_documents"] = [Skipped(**entry) for entry in content["skipped_documents"]]
            content["shards"] = [Shard(**entry) for entry in content["shards"]]
            return cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(
                "{path} is incomplete ({error}); copy the folder again, or run subllm corpus again.",
                path=str(path),
                error=first_line(error),
            ) from error


def name_of(kind: str, number: int) -> str:
    """Name of a shard's file inside the folder, such as "tokens/00000.parquet"."""
    return f"{kind}/{number:05d}.parquet"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_nan(value: Any) -> Any:
    """The value with null in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
