"""The second pass over a corpus result: from one row a token to the small tables that are looked at.

The shards are read one after another, four times, and what is counted grows with cells, vocabulary and resamples, not
with the tokens; but with many levels, the number of paths does (`paths.PathCounts`). The result depends on nothing but
the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CorpusError
from ..guard import Progress, silent
from .association import Association, columns_of, optional_columns
from .cells import COLUMNS, Group, chosen, groups
from .examples import Choice, Wanted, excerpts, windows_of
from .paths import FEWEST_DOCUMENTS, PathCounts, jackknife
from .schema import CorpusRun
from .shards import Tokens, read_shards
from .statistics import RESAMPLES, Estimates, benjamini_hochberg, chances, quantiles
from .summary import DOCUMENTS, MEASURES, About, write_summary
from .tally import Tally

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of documents
_FEWEST_TOKENS = 64  # of a document that is named
_NAMED = 20  # documents of each level
_BINS = 1000  # that shares of documents are sorted into
MOST_SOURCES = 20  # that shares are divided by
_PASSES = 4


def aggregate(folder: Path, progress: Progress = silent) -> None:
    """Write the summary of a corpus result.

    Args:
        folder: of the result.
        progress: receives the progress; may raise to stop.

    Raises:
        CorpusError: if the result has no tokens, or a shard is missing or damaged.
        DiskFullError: if the disk is full.
    """
    run = CorpusRun.read(folder)
    if not run.tokens:
        raise CorpusError(
            "{folder} has no tokens: every document was left out, or there was none. corpus.json names them with the "
            "reasons.",
            folder=str(folder),
        )
    _Aggregation(run, folder, progress).write()


class _Aggregation:
    """The passes over one result, and what is known after each."""

    def __init__(self, run: CorpusRun, folder: Path, progress: Progress) -> None:
        self._run, self._folder, self._progress = run, folder, progress
        self._levels = [level for level, stride in enumerate(run.levels.strides, 1) if stride == 1]
        self._wanted: list[Wanted] = []
        self._rows: list[dict[str, object]] = []

    def write(self) -> None:
        run = self._run
        self._paths, self._documents = PathCounts(run), _Documents(run, self._levels)
        optional = dict.fromkeys(optional_columns(run), False)  # whether they have values
        for tokens in self._shards(0, ["id", "kept", *optional]):
            self._paths.add(tokens)
            self._documents.add(tokens)
            optional = {
                name: there or bool(np.isfinite(tokens.columns[name]).any()) for name, there in optional.items()
            }
        occurrences = self._paths.occurrences(run.vocabulary)
        known = [name for name, there in optional.items() if there]
        self._associations = [Association(run, level, occurrences, known) for level in self._levels]
        self._count_cells(occurrences)
        self._count_fifths()
        for tokens in self._shards(3, self._columns):
            for association in self._associations:
                association.resample(tokens)
        self._note_entropies()
        self._note_associations()
        measures = pa.Table.from_pylist(self._marked(), schema=MEASURES)
        examples, texts = excerpts(run, self._folder, self._wanted if run.options.texts else [])
        tests = int(np.isfinite(measures["chance"].to_numpy()).sum())
        whole = self._paths.entropies(0)
        about = About(
            run.tokens, run.documents, run.digest, self._levels, RESAMPLES, tests, self._documents.quantiles(),
            whole[2], whole[3], *self._documents.losses(), len(self._documents.sources) > MOST_SOURCES,
            self._documents.long(),
        )  # fmt: skip
        tables = {"measures": measures, "documents": self._documents.named(), "examples": examples, "excerpts": texts}
        write_summary(self._folder, about, tables)

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*COLUMNS, *columns_of(self._run)]))

    def _shards(self, number: int, columns: Iterable[str]) -> Iterator[Tokens]:
        """The shards in one of the passes."""
        done = 0
        for tokens in read_shards(self._run, self._folder, list(columns)):
            self._progress((number + done / self._run.tokens) / _PASSES, "summary", done=done, length=self._run.tokens)
            yield tokens
            done += len(tokens)

    def _count_cells(self, occurrences: np.ndarray) -> None:
        """Shares and examples of all groups, of the paths, and of the types that flip most; ranks of the values."""
        run, levels = self._run, self._levels
        everywhere = groups(occurrences * 1e6 / max(self._paths.tokens, 1), run.options.window)
        if 1 < len(self._documents.sources) <= MOST_SOURCES:
            everywhere.append(_numbered("source", "source", list(self._documents.sources), source_name))
        by_level = {
            level: [
                *everywhere,
                chosen(f"type {level}", "id", self._paths.flipping(level)),
                _numbered(f"document {level}", "document", self._documents.least(level)),
            ]
            for level in levels
        }
        cells = _Cells(run, by_level)
        paths = chosen("path", "kept", self._paths.paths())
        listed = len(paths.cells)  # rarer ones come after them, as one cell more, so that shares are of all tokens
        taken, examples = Tally(replace(paths, cells=(*paths.cells, "rest"))), Choice(listed)
        for tokens in self._shards(1, self._columns):
            cells.add(tokens)
            codes = paths.codes(tokens)
            each = np.ones(len(tokens), dtype=np.bool_)
            taken.add(tokens, codes, each, each)
            examples.add(tokens.shard, windows_of(tokens), codes, codes < listed)
            for association in self._associations:
                association.rank(tokens)
        for association in self._associations:
            association.ranked()
        self._all = {level: tallies[0] for level, tallies in cells.tallies.items()}  # the first group is all tokens
        self._note_cells(cells)
        names = [_path_name(int(kept), run.num_levels) for kept in self._paths.paths().tolist()]
        found, resampled = taken.composition()
        for number, name in enumerate(names):
            self._note("path", 0, "path", name, number, found, taken.reached, taken.documents, resampled)
        self._wanted += [
            Wanted("path", names[cell], 0, bool(self._paths.paths()[cell]), shard, row)
            for cell, shard, row in examples.chosen()
        ]

    def _count_fifths(self) -> None:
        """Shares and examples of the fifths of every variable; means by type."""
        by_level = {level: list(each.fifths()) for level, each in zip(self._levels, self._associations, strict=True)}
        cells = _Cells(self._run, by_level)
        for tokens in self._shards(2, self._columns):
            cells.add(tokens)
            for association in self._associations:
                association.relate(tokens)
        for association in self._associations:
            association.related()
        self._note_cells(cells)

    def _note_cells(self, cells: "_Cells") -> None:
        for level, tallies in cells.tallies.items():
            for tally in tallies:
                found, apart = tally.shares(), tally.apart(self._all[level])
                for number, cell in enumerate(tally.group.cells):
                    if tally.reached[number]:
                        self._note(
                            "share", level, tally.group.name, cell, number, found, tally.reached, tally.documents,
                            tally.resampled, apart.chances, apart.differences,
                        )  # fmt: skip
        self._wanted += cells.wanted()

    def _note_entropies(self) -> None:
        names = ("decision", "given type", "explained")
        documents = self._run.documents
        for level in (0, *self._levels):
            values, without, tokens, _ = self._paths.entropies(level)
            errors = jackknife(values, without) if documents >= FEWEST_DOCUMENTS else np.full(3, np.nan)
            half = quantiles(np.array([len(without)])) * errors
            most = np.maximum([1.0 if level else np.inf] * 2 + [1.0], values)  # bits of a decision, and a share
            low = np.maximum(values - half, np.minimum(values, 0))
            found = Estimates(values, low, np.minimum(values + half, most), errors)
            for number, name in enumerate(names):
                self._note("entropy", level, "entropy", name, number, found, np.full(3, tokens), np.full(3, documents))

    def _note_associations(self) -> None:
        for association in self._associations:
            for each in association.measures():
                size = len(association.variables)
                documents = np.full(size, association.documents)
                found = each.found
                tested = chances(found.values - each.neutral, found.errors, documents)
                for number, name in enumerate(association.variables):
                    self._note(
                        each.measure, association.level, each.measure, name, number, found,
                        np.full(size, association.tokens), documents, each.resampled, tested,
                    )  # fmt: skip

    def _note(
        self,
        measure: str,
        level: int,
        group: str,
        cell: str,
        number: int,
        found: Estimates,
        tokens: np.ndarray,
        documents: np.ndarray,
        resampled: np.ndarray | None = None,
        tested: np.ndarray | None = None,
        differences: np.ndarray | None = None,
    ) -> None:
        value = found.values[number]
        if not np.isfinite(value):
            return
        self._rows.append(
            {
                "measure": measure,
                "level": level,
                "group": group,
                "cell": cell,
                "value": value,
                "low": found.low[number],
                "high": found.high[number],
                "error": found.errors[number],
                "difference": np.nan if differences is None else differences[number],
                "chance": np.nan if tested is None else tested[number],
                "tokens": int(tokens[number]),
                "documents": int(documents[number]),
                "resampled": None if resampled is None else (resampled[:, number] - value).astype(np.float16),
            }
        )

    def _marked(self) -> list[dict[str, object]]:
        """The rows, with those marked that survive the correction for all tests."""
        marked = benjamini_hochberg(np.array([row["chance"] for row in self._rows], dtype=np.float64))
        return [row | {"marked": mark} for row, mark in zip(self._rows, marked.tolist(), strict=True)]


class _Cells:
    """Tallies and examples of groups at every level.

    Attributes:
        tallies: by level, in the order of the groups.
    """

    def __init__(self, run: CorpusRun, by_level: Mapping[int, list[Group]]) -> None:
        self._run = run
        self.tallies = {level: [Tally(group) for group in groups] for level, groups in by_level.items()}
        self._choices = {
            (level, number, kept): Choice(len(group.cells))
            for level, groups in by_level.items()
            for number, group in enumerate(groups)
            for kept in (False, True)
        }

    def add(self, tokens: Tokens) -> None:
        """Count a shard."""
        windows = windows_of(tokens) if self._run.options.texts else None
        known: dict[int, np.ndarray] = {}  # groups of all levels are coded once
        for level, tallies in self.tallies.items():
            reached, kept = tokens.reached[level - 1], tokens.kept[level - 1]
            for number, tally in enumerate(tallies):
                if id(tally.group) not in known:
                    known[id(tally.group)] = tally.group.codes(tokens)
                codes = known[id(tally.group)]
                tally.add(tokens, codes, reached, kept)
                if windows is not None:
                    for decision in (False, True):
                        self._choices[level, number, decision].add(
                            tokens.shard, windows, codes, reached & (kept == decision)
                        )

    def wanted(self) -> list[Wanted]:
        """The examples."""
        return [
            Wanted(tally.group.name, tally.group.cells[cell], level, decision, shard, row)
            for level, tallies in self.tallies.items()
            for number, tally in enumerate(tallies)
            for decision in (False, True)
            for cell, shard, row in self._choices[level, number, decision].chosen()
        ]


class _Documents:
    """Shares of documents: their quantiles, and the smallest ones.

    Attributes:
        sources: names of the sources; no more than can be told apart, and one.
    """

    def __init__(self, run: CorpusRun, levels: list[int]) -> None:
        self._run, self._levels = run, levels
        self.sources: dict[str, None] = {}
        self._bins = {level: np.zeros(_BINS + 1, dtype=np.int64) for level in levels}
        self._least: dict[int, list[tuple[float, int, dict[str, object]]]] = {level: [] for level in levels}
        self._losses = np.zeros((2, 2))  # sum and number of tokens, of the model and of the dense one

    def add(self, tokens: Tokens) -> None:
        """Look at the documents of a shard."""
        table = tokens.documents
        count = table["tokens"].to_numpy().astype(np.int64)
        if len(self.sources) <= MOST_SOURCES:
            self.sources |= dict.fromkeys(map(source_name, table["source"].unique().to_pylist()))
        predicted = count - table["windows"].to_numpy()
        for row, name in enumerate(("loss", "dense_loss")):
            if name in table.column_names:
                loss = table[name].to_numpy().astype(np.float64)
                known = np.isfinite(loss)
                self._losses[row] += (loss[known] * predicted[known]).sum(), predicted[known].sum()
        kept = {level: table[f"kept_{level}"].to_numpy().astype(np.int64) for level in self._run_levels}
        for level in self._levels:
            parent = self._run.levels.parents[level - 1]
            reached = kept[parent] if parent else count
            named = np.flatnonzero(reached >= _FEWEST_TOKENS)
            share = kept[level][named] / reached[named]
            self._bins[level] += np.bincount((share * _BINS).round().astype(np.int64), minlength=_BINS + 1)
            for index in np.argsort(share, kind="stable")[:_NAMED].tolist():
                row = int(named[index])
                entry = table.slice(row, 1).to_pylist()[0]
                about = {name: entry[name] for name in ("document", "name", "source", "tokens", "loss")}
                about |= {"level": level, "share": share[index], "reached": int(reached[row])}
                self._least[level].append((float(share[index]), int(entry["document"]), about))
            self._least[level] = sorted(self._least[level], key=lambda each: each[:2])[:_NAMED]

    @property
    def _run_levels(self) -> range:
        return range(1, self._run.num_levels + 1)

    def quantiles(self) -> dict[str, list[float]]:
        """By level, the shares kept of documents at `QUANTILES`; none for a level without documents of enough tokens.

        They are exact to a thousandth.
        """
        found = {}
        for level, bins in self._bins.items():
            if bins.sum():
                places = np.searchsorted(np.cumsum(bins), np.array(QUANTILES) * bins.sum())
                found[str(level)] = (places / _BINS).tolist()
        return found

    def long(self) -> dict[str, int]:
        """By level, the number of documents that the quantiles are of: those of which enough tokens reach it."""
        return {str(level): int(bins.sum()) for level, bins in self._bins.items()}

    def least(self, level: int) -> list[int]:
        """Numbers of the documents of which a level keeps the smallest share."""
        return [document for _, document, _ in self._least[level]]

    def named(self) -> pa.Table:
        """The documents of which each level keeps the smallest share."""
        rows = [about for least in self._least.values() for _, _, about in least]
        return pa.Table.from_pylist(rows, schema=DOCUMENTS)

    def losses(self) -> tuple[float | None, float | None]:
        """Mean surprisal of the model and of the dense one, nats per token."""
        (own, count), (dense, dense_count) = self._losses.tolist()
        return own / count if count else None, dense / dense_count if dense_count else None


def source_name(source: str) -> str:
    """What a source is called: the name of its file without the ending, or of a dataset. Files of one name are one."""
    return source.rpartition("/")[2].removesuffix(".txt").removesuffix(".jsonl").removesuffix(".parquet") or source


def _numbered(name: str, column: str, values: list[Any], reading: Callable[[Any], Any] = lambda value: value) -> Group:
    """A group with a cell for each of some values of a column of the table of documents, or of what is read in it."""
    numbers = {value: number for number, value in enumerate(values)}

    def coded(tokens: Tokens) -> np.ndarray:
        own = [numbers.get(reading(value), len(values)) for value in tokens.documents[column].to_pylist()]
        return np.asarray(own, dtype=np.int64)[tokens.local]

    return Group(name, tuple(map(str, values)), coded)


def _path_name(kept: int, levels: int) -> str:
    """Levels that keep the tokens of a path, such as "1 2"; "0" for none of them."""
    return " ".join(str(level) for level in range(1, levels + 1) if kept >> (level - 1) & 1) or "0"
