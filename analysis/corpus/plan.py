"""The plan of a run: documents read once, numbered, and divided into shards, so that any worker can take any shard.

While a run goes on, its folder holds `plan.json` and the texts of each shard in `input/`. They are what makes a run
continue after it was killed, also where the documents came from a stream; a finished run has removed them.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from subllm.atomic import written_whole
from subllm.checkpoints.confined import ConfinedError
from subllm.checkpoints.tokenizer import encode
from subllm.text.sources import LeftOut, read_pieces

from ..errors import CorpusError
from ..guard import Progress
from .schema import FORMAT, INPUT, MOST_SKIPPED, Options, Skipped, name_of

PLAN = "plan.json"
_LONGEST_LINE = 500_000  # characters, with which a line is too long
_SCHEMA = pa.schema([("document", pa.int32()), ("name", pa.string()), ("source", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to continue in a folder.

    Attributes:
        checkpoint: sha256 of the checkpoint's configuration and weights.
        tokenizer: sha256 of the tokenizer's vocabulary.
        sources: what is read, as it was named.
        options: what else decides the bytes.
    """

    checkpoint: str
    tokenizer: str
    sources: list[str]
    options: Options


@dataclass(frozen=True)
class Plan:
    """Shards of documents that are to be read.

    Attributes:
        identity: of the run.
        shards: characters of each shard's documents.
        skipped: number of documents left out.
        skipped_documents: the first of them, at most `MOST_SKIPPED`.
    """

    identity: Identity
    shards: list[int]
    skipped: int
    skipped_documents: list[Skipped]

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """The plan of a run that is not finished; None if there is none, or it was not written to its end."""
        try:
            content: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise CorpusError(
                    "{folder} holds a run that another version began; finish it with that version, or choose another "
                    "folder.",
                    folder=str(folder),
                )
            identity = content["identity"]
            return cls(
                Identity(**(identity | {"options": Options(**identity["options"])})),
                content["shards"],
                content["skipped"],
                [Skipped(**entry) for entry in content["skipped_documents"]],
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, CorpusError):
                raise
            raise CorpusError(
                "{path} cannot be read; remove it and run the command again, which begins anew.",
                path=str(folder / PLAN),
            ) from error

    def write(self, folder: Path) -> None:
        """Write the plan in one step."""
        with written_whole(folder / PLAN) as partial:
            partial.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")

    def check(self, identity: Identity, folder: Path) -> None:
        """Check that a run which is asked for is the one that the folder holds.

        Raises:
            CorpusError: if it is another one.
        """
        pairs = {
            "checkpoint": (self.identity.checkpoint, identity.checkpoint),
            "tokenizer": (self.identity.tokenizer, identity.tokenizer),
            "text": (self.identity.sources, identity.sources),
        }
        before, now = asdict(self.identity.options), asdict(identity.options)
        pairs |= {name: (before[name], now[name]) for name in now}
        for name, (old, new) in pairs.items():
            if old != new:
                raise CorpusError(
                    "{folder} holds a run that is not finished and has another {name} ({old} there, {new} now). Repeat "
                    "its own command to finish it, or choose another folder.",
                    folder=str(folder),
                    name=name,
                    old=_short(old),
                    new=_short(new),
                )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


class _Skipping(LeftOut):
    """Documents that are left out, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.documents = 0, list[Skipped]()

    def add(self, source: str, row: int, wrong: str) -> None:
        """Name a row that is no text."""
        name = _name(source, row)
        self.first = self.first or f"{name}: {wrong}"
        self.leave(name, wrong)

    def add_empty(self, source: str, row: int) -> None:
        """Name a row without visible characters."""
        self.add(source, row, "it is empty")

    def leave(self, name: str, reason: str) -> None:
        """Name a document."""
        self.count += 1
        if len(self.documents) < MOST_SKIPPED:
            self.documents.append(Skipped(name, reason))

    def say(self) -> None:
        """Say nothing: `corpus.json` says it."""


def _name(source: str, row: int) -> str:
    """Name of a document: its file, or its file and row."""
    return source if source.endswith(".txt") else f"{source}:{row}"


class _Shards:
    """Writes documents to shards."""

    def __init__(self, folder: Path, characters: int) -> None:
        self._folder, self._characters = folder, characters
        self._rows: list[dict[str, object]] = []
        self._held = 0
        self.written: list[int] = []

    def add(self, document: int, name: str, source: str, text: str) -> None:
        self._rows.append({"document": document, "name": name, "source": source, "text": text})
        self._held += len(text)
        if self._held >= self._characters:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            path = self._folder / name_of(INPUT, len(self.written))
            pq.write_table(pa.Table.from_pylist(self._rows, _SCHEMA), path, compression="zstd")
            self.written.append(self._held)
            self._rows, self._held = [], 0


def make_plan(
    identity: Identity,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> Plan:
    """Read all documents, and write the plan.

    A document of more than a million characters counts as several, as `subllm.text.sources.read_pieces` cuts it. From
    a part with too long a line on, a document is left out.

    Args:
        identity: of the run.
        folder: of the results.
        tokenizer: counts tokens where there is a limit.
        progress: told how many documents there are.

    Raises:
        CorpusError: if there is no document.
        DataError: if something does not exist or cannot be read.
    """
    shutil.rmtree(folder / INPUT, ignore_errors=True)
    (folder / INPUT).mkdir(parents=True)
    options = identity.options
    shards, skipping = _Shards(folder, options.shard_characters), _Skipping()
    left = options.tokens
    part, dropping, number, line = 1, False, count(), 0
    for piece in read_pieces(identity.sources, skipping):
        part = 1 if piece.first else part + 1
        dropping = dropping and not piece.first
        name = _name(piece.source, piece.row) + ("" if part == 1 else f"#{part}")
        longest, line = _lines(piece.text, 0 if piece.first else line)
        if not dropping and longest >= _LONGEST_LINE:
            skipping.leave(name, f"it has a line of {_LONGEST_LINE:,} characters or more")
            dropping = True
        if dropping:
            continue
        text = piece.text
        if left is not None:
            text, used = first_tokens(text, tokenizer, left)
            left -= used
        document = next(number)
        shards.add(document, name, piece.source, text)
        progress(0.0, "documents", done=f"{document + 1:,}")
        if left is not None and left <= 0:
            break
    shards.flush()
    if not shards.written:
        raise CorpusError(
            "No document is left to read; {skipped:,} were left out (the first: {first}). Give .txt, .jsonl or "
            ".parquet files with text.",
            skipped=skipping.count,
            first="; ".join(f"{entry.name}, {entry.reason}" for entry in skipping.documents[:1]),
        )
    plan = Plan(identity, shards.written, skipping.count, skipping.documents)
    plan.write(folder)
    return plan


def _lines(text: str, before: int) -> tuple[int, int]:
    """Characters of the longest line, and of the last one.

    Args:
        text: a part of a document.
        before: characters of its first line in the part before.
    """
    lengths = list(map(len, text.split("\n")))
    lengths[0] += before
    return max(lengths), lengths[-1]


def first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> tuple[str, int]:
    """The beginning of a text that has at most so many tokens, and their number.

    A text that the tokenizer cannot read stays whole, and counts for nothing.
    """
    try:
        found = encode(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except ConfinedError:
        return text, 0  # a worker names the document
    return (text, len(found)) if len(found) <= most else (text[: found[most - 1][1]], most)
