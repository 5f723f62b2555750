"""What a worker does: one function from the texts of a shard to its tables, the same in every process and engine."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from subllm import SubllmForCausalLM
from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.confined import ConfinedError
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.device import device_name
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.checkpoints.tokenizer import encode
from subllm.errors import PromptError
from subllm.routing import routing_arrays

from ..guard import check_ids
from ..trace.prefill import routing_of
from .reading import NotFinite, Numbers, Reader, batches
from .schema import (
    DOCUMENTS,
    INPUT,
    TEXT_SCHEMA,
    TEXTS,
    TOKENS,
    Flag,
    Levels,
    Options,
    Shard,
    Skipped,
    document_schema,
    name_of,
    sha256_of,
    token_schema,
    without_nan,
)
from .tags import tags_of, window_flags

DONE, FACTS = "done", "model.json"
_LARGEST = float(np.finfo(np.float16).max)
Report = Callable[[int], None]
"""Called with the number of tokens that were read since the last call; may raise to stop."""


@dataclass(frozen=True)
class Facts:
    """What `corpus.json` says of the model; see `CorpusRun`."""

    checkpoint: str
    structure: str
    levels: Levels
    vocabulary: int
    special_ids: list[int]
    dense: str
    attention_kernel: str
    device: str
    versions: str

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """Read what the first worker wrote."""
        entry: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return cls(**(entry | {"levels": Levels.from_json(entry["levels"])}))

    def write(self, folder: Path) -> None:
        """Write them in one step."""
        with written_whole(folder / FACTS, shared=True) as partial:
            partial.write_text(json.dumps(without_nan(asdict(self))), encoding="utf-8")


@dataclass(frozen=True)
class Done:
    """A shard that a worker completed.

    Attributes:
        shard: what it wrote.
        skipped: documents that could not be read.
        seconds: that it took.
    """

    shard: Shard
    skipped: list[Skipped]
    seconds: float

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Done":
        """Read what `dataclasses.asdict` made, after a way through JSON."""
        return cls(Shard(**entry["shard"]), [Skipped(**each) for each in entry["skipped"]], entry["seconds"])

    def write(self, folder: Path) -> None:
        """Note in one step that the shard is complete."""
        path = done_path(folder, self.shard.number)
        path.parent.mkdir(exist_ok=True)
        with written_whole(path, shared=True) as partial:
            partial.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(eq=False)
class _Document:
    """A document on its way to the tables: its row, its tokens, and the numbers of its windows."""

    row: dict[str, Any]
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    windows: list[Numbers | None]


class Worker:
    """Reads shards.

    Args:
        checkpoint: that reads.
        options: of the run.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options) -> None:
        self.checkpoint, self.options = checkpoint, options
        dense = load_dense(checkpoint) if options.dense else None
        self._reader = Reader(checkpoint.model, dense, attention=options.attention)
        self._dense = "" if dense is None else dense.description
        self._special = np.array(sorted(checkpoint.tokenizer.all_special_ids), dtype=np.int64)
        self._prefix = _prefix_of(checkpoint)
        self._levels = checkpoint.model.config.parsed_structure.num_levels

    @classmethod
    def load(cls, folder: Path, device: str, options: Options) -> "Worker":
        """A worker in a process of its own, from the folder of the checkpoint."""
        if torch.device(device).type == "cpu":
            torch.set_num_threads(options.threads)
        return cls(load_checkpoint(folder, device, options.dtype), options)

    def facts(self, name: str = "") -> Facts:
        """What is the same for all tokens.

        Args:
            name: display name of the checkpoint; the name of its folder by default.
        """
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        return Facts(
            checkpoint=name or self.checkpoint.folder.name,
            structure=str(model.config.structure),
            levels=_levels_of(model),
            vocabulary=len(tokenizer),
            special_ids=self._special.tolist(),
            dense=self._dense,
            attention_kernel=str(model.config._attn_implementation),
            device=device_name(model.device),
            versions=f"torch {torch.__version__}, transformers {transformers.__version__}, pyarrow {pa.__version__}",
        )

    def read_shard(self, folder: Path, number: int, report: Report) -> Done:
        """Read the texts of a shard, and write its tables.

        Args:
            folder: of the results, with the plan's texts.
            number: of the shard.
            report: told of every batch.

        Raises:
            DiskFullError: if the disk is full; nothing is left half-written.
        """
        began = time.monotonic()
        rows = pq.read_table(folder / name_of(INPUT, number)).to_pylist()
        skipped: list[Skipped] = []
        documents = [each for row in rows if (each := self._tokenised(row, skipped)) is not None]
        self._read(documents, skipped, report)
        documents = [each for each in documents if None not in each.windows]
        tables = {TOKENS: self._token_table(documents), DOCUMENTS: self._document_table(documents)}
        if self.options.texts:
            tables[TEXTS] = _text_table(documents)
        files = {}
        with full_disk_reported(folder):
            for kind, table in tables.items():
                path = folder / name_of(kind, number)
                path.parent.mkdir(exist_ok=True)
                with written_whole(path, shared=True) as partial:
                    pq.write_table(table, partial, compression="zstd")
                files[name_of(kind, number)] = sha256_of(path)
            shard = Shard(number, len(documents), len(tables[TOKENS]), files)
            done = Done(shard, skipped, time.monotonic() - began)
            done.write(folder)
        return done

    def _tokenised(self, row: dict[str, Any], skipped: list[Skipped]) -> _Document | None:
        """A document with its tokens; None if it has none or has tokens that the model does not know."""
        try:
            found = encode(
                self.checkpoint.tokenizer, row["text"], add_special_tokens=False, return_offsets_mapping=True
            )
            ids = np.asarray(found["input_ids"], dtype=np.int64)
            check_ids(self.checkpoint.model, ids)
        except (ConfinedError, PromptError) as error:
            skipped.append(Skipped(row["name"], str(error)))
            return None
        if not len(ids):
            skipped.append(Skipped(row["name"], "its text has no tokens"))
            return None
        places = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        room = self.options.window - len(self._prefix)
        cuts = range(room, len(ids), room)
        windows, spans = np.split(ids, cuts), np.split(places, cuts)
        first = [np.repeat(span[:1, :1], 2, axis=1).repeat(len(self._prefix), axis=0) for span in spans]
        ids = np.concatenate([part for window in windows for part in (self._prefix, window)])
        starts, ends = np.concatenate([part for pair in zip(first, spans, strict=True) for part in pair]).T
        return _Document(row, ids, starts, ends, [None] * len(windows))

    def _read(self, documents: list[_Document], skipped: list[Skipped], report: Report) -> None:
        """Fill in the numbers of all windows; those of a document whose numbers are not finite stay out."""
        places = [(document, number) for document in documents for number in range(len(document.windows))]
        ids = [self._window(document, number) for document, number in places]
        bad: set[int] = set()
        for rows in batches([len(each) for each in ids], self.options):
            for row, found in zip(rows, self._each([[ids[window] for window in row] for row in rows]), strict=True):
                for window, numbers in zip(row, found, strict=True):
                    document, number = places[window]
                    document.windows[number] = numbers
                    if numbers is None:
                        bad.add(int(document.row["document"]))
            report(sum(len(ids[window]) for row in rows for window in row))
        skipped += [
            Skipped(each.row["name"], f"numbers stop being finite in {self.options.dtype}")
            for each in documents
            if each.row["document"] in bad
        ]

    def _each(self, rows: list[list[np.ndarray]]) -> list[list[Numbers | None]]:
        """The numbers of every window of a batch; None where they are not finite: then each is read alone."""
        try:
            return [list(row) for row in self._reader.read(rows)]
        except NotFinite:
            if sum(map(len, rows)) == 1:
                return [[None]]
            return [[self._each([[window]])[0][0] for window in row] for row in rows]

    def _window(self, document: _Document, number: int) -> np.ndarray:
        return document.ids[number * self.options.window : (number + 1) * self.options.window]

    def _token_table(self, documents: list[_Document]) -> pa.Table:
        """Table of all tokens."""
        schema = token_schema(self._levels, dense=self.options.dense, attention=self.options.attention)
        parts = [self._token_columns(document) for document in documents]
        columns = [
            pa.array(np.concatenate([part[field.name] for part in parts]) if parts else [], field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def _token_columns(self, document: _Document) -> dict[str, np.ndarray]:
        """Columns of a document's tokens."""
        numbers = [each for each in document.windows if each is not None]
        special = np.isin(document.ids, self._special)
        tags = tags_of(document.row["text"], document.starts, document.ends, special)
        kept = np.concatenate([each.kept for each in numbers], axis=1)
        agrees = np.concatenate([each.agrees for each in numbers]) * np.uint16(Flag.DENSE_AGREES)
        flags = tags.flags | window_flags(document.ids, self.options.window) | agrees.astype(np.uint16)
        bits = np.zeros(len(document.ids), dtype=np.uint64)
        for level, row in enumerate(kept):
            bits |= row.astype(np.uint64) << np.uint64(level)
        narrow = token_schema(self._levels).field("kept").type.to_pandas_dtype()
        found = {
            "document": np.full(len(document.ids), document.row["document"], dtype=np.int32),
            "position": np.arange(len(document.ids), dtype=np.int32),
            "id": document.ids.astype(np.int32),
            "kept": bits.astype(narrow),
            "kind": tags.kind,
            "script": tags.script,
            "segment": tags.segment,
            "word": tags.word,
            "flags": flags,
        }
        for name in ("surprisal", "entropy", "dense_surprisal", "attention"):
            found[name] = _half(np.concatenate([getattr(each, name) for each in numbers]))
        for name, field in (("score", "scores"), ("norm", "norms")):
            rows = np.concatenate([getattr(each, field) for each in numbers], axis=1)
            found |= {f"{name}_{level}": _half(row) for level, row in enumerate(rows, start=1)}
        return found

    def _document_table(self, documents: list[_Document]) -> pa.Table:
        """Table of all documents."""
        schema = document_schema(self._levels, dense=self.options.dense)
        rows = []
        for document in documents:
            row, numbers = document.row, [each for each in document.windows if each is not None]
            kept = sum(each.kept.sum(1) for each in numbers)
            rows.append(
                {
                    "document": row["document"],
                    "name": row["name"],
                    "source": row["source"],
                    "tokens": len(document.ids),
                    "windows": len(document.windows),
                    "digest": hashlib.sha256(row["text"].encode()).hexdigest(),
                    "loss": _mean([each.surprisal for each in numbers]),
                    "dense_loss": _mean([each.dense_surprisal for each in numbers]),
                }
                | {f"kept_{level}": int(count) for level, count in enumerate(np.atleast_1d(kept), start=1)}
            )
        return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)


def done_path(folder: Path, number: int) -> Path:
    """File that says that a shard is complete."""
    return folder / DONE / f"{number:05d}.json"


def _prefix_of(checkpoint: Checkpoint) -> np.ndarray:
    """Ids that the tokenizer puts before a text, such as that of the beginning of a sequence."""
    plain = encode(checkpoint.tokenizer, "a", add_special_tokens=False)["input_ids"]
    whole = list(encode(checkpoint.tokenizer, "a", add_special_tokens=True)["input_ids"])
    length = next(start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return np.asarray(whole[:length], dtype=np.int64)


@torch.inference_mode()
def _levels_of(model: SubllmForCausalLM) -> Levels:
    """What routing has without tokens, from a pass over one token."""
    output = model.model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False, output_routing=True)
    routing = routing_of(model, routing_arrays(output.routing, 1))
    scale = [[float(f"{value:.4g}") for value in row] for row in routing.bypass_scale.tolist()]
    lists = {
        name: getattr(routing, name).tolist()
        for name in Levels.__dataclass_fields__
        if name != "bypass_scale"
    }  # fmt: skip
    return Levels(**lists, bypass_scale=scale)


def _half(values: np.ndarray) -> np.ndarray:
    """Values as float16; what is larger becomes the largest."""
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)


def _mean(parts: list[np.ndarray]) -> float:
    """Mean of all values that are known; NaN without any."""
    values = np.concatenate(parts)
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def _text_table(documents: list[_Document]) -> pa.Table:
    """Table of all texts."""
    rows = [
        {"document": each.row["document"], "text": each.row["text"], "starts": each.starts, "ends": each.ends}
        for each in documents
    ]
    return pa.Table.from_pylist(rows, TEXT_SCHEMA)
