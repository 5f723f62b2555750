"""The shards of a corpus result one after another, as arrays; no more than one of them is in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from subllm.errors import first_line

from ..errors import CorpusError
from .schema import DOCUMENTS, TOKENS, CorpusRun, name_of
from .statistics import mixed, resample_weights


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of one shard, N of them in D documents.

    Attributes:
        run: that the shard is of.
        shard: its number.
        columns: (N,) arrays by the names of the columns that were asked for.
        documents: table of the documents, as `schema.document_schema`.
        local: (N,) row of each token's document in that table.
        keys: (D,) uint64 that stands for each document's text.
    """

    run: CorpusRun
    shard: int
    columns: dict[str, np.ndarray]
    documents: pa.Table
    local: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.local)

    @cached_property
    def kept(self) -> np.ndarray:
        """(S, N) whether each level kept each token."""
        return self.run.kept(self.columns["kept"])

    @cached_property
    def reached(self) -> np.ndarray:
        """(S, N) whether each token reached each level."""
        return self.run.reached(self.columns["kept"])

    @cached_property
    def weights(self) -> np.ndarray:
        """(R, D) how often each resample has each document."""
        return np.ascontiguousarray(resample_weights(self.keys).T)


def read_shards(run: CorpusRun, folder: Path, columns: Sequence[str]) -> Iterator[Tokens]:
    """Read some columns of all shards, in their order.

    Args:
        run: what `corpus.json` says.
        folder: of the result.
        columns: names; "document" comes with them.

    Raises:
        CorpusError: if a shard is missing, damaged, or not what `corpus.json` says.
    """
    for shard in run.shards:
        if not shard.tokens:
            continue
        table = read_table(folder / name_of(TOKENS, shard.number), ["document", *columns])
        documents = read_table(folder / name_of(DOCUMENTS, shard.number))
        if len(table) != shard.tokens or len(documents) != shard.documents:
            raise CorpusError(
                "The shard {number} has {found:,} tokens, and corpus.json says {expected:,}. Run the same command "
                "again, which makes it anew.",
                number=shard.number,
                found=len(table),
                expected=shard.tokens,
            )
        documents = documents.filter(pc.greater(documents["tokens"], 0))
        arrays = {name: table[name].to_numpy() for name in table.column_names}
        local = np.searchsorted(documents["document"].to_numpy(), arrays.pop("document"))
        try:
            keys = [int(digest[:16], 16) for digest in documents["digest"].to_pylist()]
        except (TypeError, ValueError) as error:
            raise unreadable(folder / name_of(DOCUMENTS, shard.number), error) from error
        yield Tokens(run, shard.number, arrays, documents, local, mixed(np.array(keys, dtype=np.uint64)))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Args:
        path: of the file.
        columns: names; all by default.

    Raises:
        CorpusError: if it is missing or damaged, or lacks a column.
    """
    if not path.is_file():  # a pipe would be waited for
        raise unreadable(path, FileNotFoundError("there is no such file"))
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns), memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CorpusError:
    """What is said of a table that cannot be read."""
    return CorpusError(
        "{path} cannot be read ({error}). Run the same command again, which makes what is missing or damaged anew, "
        "or copy the folder again.",
        path=f"{path.parent.name}/{path.name}",
        error=first_line(error),
    )
