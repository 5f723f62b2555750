"""Real examples of every cell: stretches of text around its tokens, the same ones for many cells where possible.

Documents are divided into windows, which have a fixed pseudo-random order. Each cell takes the first windows that have
a token of it, so the choice depends on nothing but the texts, and the cells share most of their windows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from .schema import DOCUMENTS, TEXTS, TOKENS, CorpusRun, name_of
from .shards import Tokens, read_table
from .statistics import mixed
from .summary import EXAMPLES, excerpt_schema

MOST = 10  # examples of a cell at a level that were kept, and as many that were dropped
_WINDOW, _AROUND = 48, 24  # tokens of a window, and those shown before and after it
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64(2**64 - 1)


def windows_of(tokens: Tokens) -> np.ndarray:
    """(N,) uint64 place of each token's window in the order of all windows."""
    window = (tokens.columns["position"] // _WINDOW).astype(np.uint64)
    return mixed(tokens.keys[tokens.local] + window * _GOLDEN)


class Choice:
    """The examples of the cells of one group; it grows with the cells, and not with the tokens.

    Args:
        cells: number of cells.
    """

    def __init__(self, cells: int) -> None:
        self._bound = np.full(cells + 1, _LAST)  # a window has to come before it
        self._bound[cells] = 0  # tokens in no cell
        self._cell, self._shard, self._row = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._window = np.zeros(0, dtype=np.uint64)

    def add(self, shard: int, windows: np.ndarray, codes: np.ndarray, wanted: np.ndarray) -> None:
        """Look at a shard.

        Args:
            shard: its number.
            windows: (N,) as `windows_of` gives them.
            codes: (N,) cell of each token.
            wanted: (N,) which tokens are meant.
        """
        rows = np.flatnonzero(wanted & (windows < self._bound[codes]))
        if not len(rows):
            return
        cell = np.concatenate([self._cell, codes[rows]])
        window = np.concatenate([self._window, windows[rows]])
        place = np.concatenate([self._shard, np.full(len(rows), shard)])
        row = np.concatenate([self._row, rows])
        order = np.lexsort((row, place, window, cell))
        cell, window, place, row = cell[order], window[order], place[order], row[order]
        first = np.ones(len(cell), dtype=np.bool_)  # of its cell in its window
        first[1:] = (cell[1:] != cell[:-1]) | (window[1:] != window[:-1])
        cell, window, place, row = cell[first], window[first], place[first], row[first]
        rank = np.arange(len(cell)) - np.searchsorted(cell, cell)
        keep = rank < MOST
        self._cell, self._window, self._shard, self._row = cell[keep], window[keep], place[keep], row[keep]
        full = rank[keep] == MOST - 1
        self._bound[self._cell[full]] = self._window[full]

    def chosen(self) -> Iterable[tuple[int, int, int]]:
        """Cell, shard and row of every example."""
        return zip(self._cell.tolist(), self._shard.tolist(), self._row.tolist(), strict=True)


@dataclass(frozen=True)
class Wanted:
    """An example of a cell.

    Attributes:
        group: name of the group.
        cell: name of the cell.
        level: from 1; 0 where no level is meant.
        kept: whether the level kept it.
        shard: number of the shard that it is in.
        row: its row there.
    """

    group: str
    cell: str
    level: int
    kept: bool
    shard: int
    row: int


def excerpts(run: CorpusRun, folder: Path, wanted: Iterable[Wanted]) -> tuple[pa.Table, pa.Table]:
    """Read the text around examples.

    Args:
        run: with texts.
        folder: of the result.
        wanted: examples.

    Returns:
        The examples (see `analysis.corpus.summary.EXAMPLES`), and the excerpts that they stand in (`excerpt_schema`).
    """
    by_shard: dict[int, list[Wanted]] = {}
    for each in wanted:
        by_shard.setdefault(each.shard, []).append(each)
    schema = excerpt_schema(run.num_levels)
    columns = [name for name in schema.names if name.startswith(("score_", "norm_")) or name == "surprisal"]
    found: list[dict[str, object]] = []
    examples: list[tuple[object, ...]] = []
    for shard in sorted(by_shard):
        table = read_table(folder / name_of(TOKENS, shard), ["document", "position", "id", "kept", *columns])
        texts = read_table(folder / name_of(TEXTS, shard))
        about = read_table(folder / name_of(DOCUMENTS, shard), ["document", "name"])
        names = dict(zip(about["document"].to_pylist(), about["name"].to_pylist(), strict=True))
        text_row = {document: row for row, document in enumerate(texts["document"].to_pylist())}
        document, position = table["document"].to_numpy(), table["position"].to_numpy()
        known: dict[int, int] = {}  # excerpt of a window, by the window's first row
        for each in by_shard[shard]:
            begin = each.row - int(position[each.row]) % _WINDOW
            own = int(document[each.row])
            first = max(begin - _AROUND, int(np.searchsorted(document, own)))
            last = min(begin + _WINDOW + _AROUND, int(np.searchsorted(document, own, side="right")))
            if begin not in known:
                known[begin] = len(found)
                line = texts.slice(text_row[own], 1)
                text, starts, ends = (line[name][0] for name in ("text", "starts", "ends"))
                own_rows = table.slice(first, last - first)
                places = slice(int(position[first]), int(position[first]) + last - first)
                starts, ends = (np.asarray(values.values)[places] for values in (starts, ends))
                left, right = int(starts[0]), max(int(ends.max()), int(starts[0]))
                found.append(
                    {
                        "document": own,
                        "name": names[own],
                        "position": int(position[first]),
                        "text": text.as_py()[left:right],
                        "starts": (starts - left).astype(np.int32),
                        "ends": (ends - left).astype(np.int32),
                        **{name: own_rows[name].to_numpy() for name in ("id", "kept", *columns)},
                    }
                )
            examples.append((each.group, each.cell, each.level, each.kept, known[begin], each.row - first))
    rows = [dict(zip(EXAMPLES.names, example, strict=True)) for example in examples]
    return pa.Table.from_pylist(rows, schema=EXAMPLES), pa.Table.from_pylist(found, schema=schema)
