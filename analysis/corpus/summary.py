"""The small tables that the second pass writes, which are all that is looked at: `summary/` of a corpus result.

It is read without the model, without the shards, and without torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from subllm.atomic import added_whole, full_disk_reported
from subllm.checkpoints.files import read_json
from subllm.errors import first_line

from ..errors import CorpusError
from ..trace.parts import Likelihood, Prompt, Provenance, Routing
from ..trace.trace import Trace
from .schema import SUMMARY, CorpusRun
from .shards import unreadable

FORMAT = 2
_ABOUT, _MEASURES, _DOCUMENTS, _EXAMPLES, _EXCERPTS, _RULES = (
    "summary.json", "measures.parquet", "documents.parquet", "examples.parquet", "excerpts.parquet", "rules.parquet",
)  # fmt: skip
FILES = (_ABOUT, _MEASURES, _DOCUMENTS, _EXAMPLES, _EXCERPTS, _RULES)
_LARGEST = 200 << 20  # bytes of a table that is opened, in the file and in memory
_ROWS = 256  # of a table that are read at a time

MEASURES = pa.schema(
    [
        pa.field("measure", pa.string()),
        pa.field("level", pa.int8()),
        pa.field("group", pa.string()),
        pa.field("cell", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("error", pa.float64()),
        pa.field("difference", pa.float64()),
        pa.field("chance", pa.float64()),
        pa.field("marked", pa.bool_()),
        pa.field("tokens", pa.int64()),
        pa.field("documents", pa.int64()),
        pa.field("resampled", pa.list_(pa.float16())),
    ]
)
"""Columns of `measures.parquet`, a row for each number.

`measure` is "share" (kept of the tokens that reached the level), "path" (share of all tokens that take it),
"entropy", "correlation", "partial" or "auc". `level` is 0 where all levels are meant. `low`, `high` and `error` come
from resamples of the documents, those of entropies and of shares with few decisions of one kind from elsewhere
(`paths.jackknife`, `statistics.share_estimates`). `difference` is the share minus that of all other tokens, and
`chance` the p-value of there being no difference or association, which is `marked` if it survives the correction for
all tests in the table.
`resampled` has the deviations of the resamples from the value.
"""

DOCUMENTS = pa.schema(
    [
        pa.field("level", pa.int8()),
        pa.field("document", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("source", pa.string()),
        pa.field("share", pa.float64()),
        pa.field("reached", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("loss", pa.float64()),
    ]
)
"""Columns of `documents.parquet`: the documents of which each level keeps the smallest share."""

EXAMPLES = pa.schema(
    [
        pa.field("group", pa.string()),
        pa.field("cell", pa.string()),
        pa.field("level", pa.int8()),
        pa.field("kept", pa.bool_()),
        pa.field("excerpt", pa.int32()),
        pa.field("token", pa.int16()),
    ]
)
"""Columns of `examples.parquet`: a token of an excerpt that is of a cell. `level` is 0 where no level is meant."""


def excerpt_schema(levels: int) -> pa.Schema:
    """Columns of `excerpts.parquet`, with a list of values of the tokens in all but the first four.

    Args:
        levels: S, number of levels.
    """
    numbers = range(1, levels + 1)
    floats = [*(f"score_{level}" for level in numbers), *(f"norm_{level}" for level in numbers), "surprisal"]
    lists = {"starts": pa.int32(), "ends": pa.int32(), "id": pa.int32(), **dict.fromkeys(floats, pa.float16())}
    lists["kept"] = pa.uint64()
    scalars = {"document": pa.int32(), "name": pa.string(), "position": pa.int32(), "text": pa.string()}
    return pa.schema([*scalars.items(), *((name, pa.list_(kind)) for name, kind in lists.items())])


@dataclass(frozen=True)
class About:
    """What `summary.json` says.

    Attributes:
        tokens: number of tokens.
        documents: number of documents.
        digest: of the checkpoint.
        levels: levels whose routers keep or drop tokens, from 1; those that merge have no shares.
        resamples: number of resamples behind the intervals.
        tests: number of tests that were corrected for.
        quantiles: by level (as text), the share kept of documents at `QUANTILES`.
        often: number of tokens of types that occur often enough for the entropies.
        types: number of those types.
        loss: mean surprisal, nats per token; None if no token has one.
        dense_loss: of the dense model; None without one.
        many_sources: whether there are too many sources for shares of each.
        long_documents: by level (as text), the number of documents that the quantiles are of; not in older summaries.
    """

    tokens: int
    documents: int
    digest: str
    levels: list[int]
    resamples: int
    tests: int
    quantiles: dict[str, list[float]]
    often: int
    types: int
    loss: float | None
    dense_loss: float | None
    many_sources: bool = False
    long_documents: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Summary:
    """All that is known of a corpus result without its shards.

    Attributes:
        run: what `corpus.json` says.
        about: what `summary.json` says.
        measures: see `MEASURES`.
        documents: see `DOCUMENTS`.
        examples: see `EXAMPLES`.
        excerpts: see `excerpt_schema`; empty without texts.
        rules: other rules at equal retention, as `analysis.corpus.rivals` writes them; empty if they were not run.
    """

    run: CorpusRun
    about: About
    measures: pd.DataFrame
    documents: pd.DataFrame
    examples: pd.DataFrame
    excerpts: pa.Table
    rules: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Summary":
        """Read what the second pass wrote.

        Args:
            folder: of a corpus result; its shards may be missing.

        Raises:
            CorpusError: if it has no summary, or one that is damaged, of another format, or of another run.
        """
        run, place = CorpusRun.read(folder), folder / SUMMARY
        try:
            content: dict[str, Any] = read_json(place / _ABOUT)
            found = content.pop("format", None)
            if found != FORMAT:
                raise CorpusError(
                    "The summary has the format {found!r}, and this version reads {known}; run the same command again, "
                    "which makes it anew.",
                    found=found,
                    known=FORMAT,
                )
            about = About(**content)
        except FileNotFoundError as error:
            raise CorpusError(
                "{folder} has no summary, so the run was stopped before its end. Run the same command again.",
                folder=folder.name,
            ) from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorpusError(
                "The summary of {folder} cannot be read ({error}); run the same command again, which makes it anew.",
                folder=folder.name,
                error=first_line(error),
            ) from error
        if about.digest != run.digest:
            raise CorpusError(
                "The summary of {folder} is of another checkpoint than its corpus.json; run the same "
                "command again, which makes it anew.",
                folder=folder.name,
            )
        if (about.tokens, about.documents) != (run.tokens, run.documents):
            raise CorpusError(
                "The summary of {folder} is of {found} tokens, and corpus.json lists {expected}; run the same command "
                "again, which makes it anew.",
                folder=folder.name,
                found=about.tokens,
                expected=run.tokens,
            )
        schemas = {
            _MEASURES: MEASURES,
            _DOCUMENTS: DOCUMENTS,
            _EXAMPLES: EXAMPLES,
            _EXCERPTS: excerpt_schema(run.num_levels),
        }
        try:
            tables = {name: _typed(_opened(place / name), schema) for name, schema in schemas.items()}
            _check(run, about, tables)
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise CorpusError(
                "The summary of {folder} cannot be read ({error}); run the same command again, which makes it anew.",
                folder=folder.name,
                error=first_line(error),
            ) from error
        rules = _opened(place / _RULES).to_pandas() if (place / _RULES).is_file() else pd.DataFrame()
        return cls(
            run,
            about,
            _of_all_tokens(tables[_MEASURES].to_pandas(), about.tokens),
            tables[_DOCUMENTS].to_pandas(),
            tables[_EXAMPLES].to_pandas(),
            tables[_EXCERPTS],
            rules,
        )

    def of(self, measure: str, level: int, group: str | None = None) -> pd.DataFrame:
        """Rows of one measure at one level, and of one group unless it is None."""
        rows = (self.measures["measure"] == measure) & (self.measures["level"] == level)
        return self.measures[rows if group is None else rows & (self.measures["group"] == group)]

    def examples_of(self, group: str, cell: str, level: int) -> pd.DataFrame:
        """Examples of a cell; those of another level where the level has none of its own."""
        rows = self.examples[(self.examples["group"] == group) & (self.examples["cell"] == cell)]
        return rows[rows["level"].isin((level, 0))]

    def piece(self, excerpt: int, token: int) -> str:
        """Text of a token of an excerpt."""
        row = self.excerpts.slice(excerpt, 1)
        starts, ends = row["starts"][0].values, row["ends"][0].values
        text: str = row["text"][0].as_py()[starts[token].as_py() : ends[token].as_py()]
        return text

    def renamed(self, sources: Mapping[str, str]) -> "Summary":
        """The same with other names of the sources of documents.

        Args:
            sources: new names by the old ones, which are names of groups and of files.
        """
        measures, documents, examples = self.measures.copy(), self.documents.copy(), self.examples.copy()
        for table in (measures, examples):
            own = table["group"] == "source"
            table.loc[own, "cell"] = table.loc[own, "cell"].replace(sources)
        documents["source"] = documents["source"].replace(sources)
        documents["name"] = [_renamed(name, sources) for name in documents["name"]]
        names = pa.array([_renamed(name, sources) for name in self.excerpts["name"].to_pylist()], pa.string())
        excerpts = self.excerpts.set_column(self.excerpts.column_names.index("name"), "name", names)
        left_out = [replace(each, name=_renamed(each.name, sources)) for each in self.run.skipped_documents]
        named = [sources.get(name, name) for name in self.run.sources]
        run = replace(self.run, sources=named, skipped_documents=left_out)
        return replace(self, run=run, measures=measures, documents=documents, examples=examples, excerpts=excerpts)

    def type_names(self) -> dict[str, str]:
        """Text of the token types that have examples, by their cells in the groups of types."""
        rows = self.examples[self.examples["group"].str.startswith("type")].drop_duplicates("cell")
        return {
            cell: self.piece(excerpt, token)
            for cell, excerpt, token in zip(rows["cell"], rows["excerpt"], rows["token"], strict=True)
        }

    def trace(self, excerpt: int) -> Trace:
        """An excerpt as a trace of what its shard records: routing and likelihood. The rest is NaN."""
        row = {name: self.excerpts[name][excerpt] for name in self.excerpts.column_names}
        run, levels = self.run, self.run.levels
        text = row["text"].as_py()
        lists = {name: np.asarray(value.values) for name, value in row.items() if name not in _SCALARS}
        starts, ends = lists["starts"].astype(np.int64), lists["ends"].astype(np.int64)
        kept = run.kept(lists["kept"])
        shape, numbers = kept.shape, range(1, run.num_levels + 1)
        unknown = np.full(shape, np.nan, dtype=np.float32)

        def by_level(name: str) -> np.ndarray:
            rows = [lists[f"{name}_{level}"].astype(np.float32) for level in numbers]
            return np.stack(rows) if rows else unknown

        return Trace(
            prompt=Prompt(
                text=text,
                token_ids=lists["id"].astype(np.int64),
                starts=starts,
                ends=ends,
                pieces=np.asarray([text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)], np.str_),
            ),
            routing=Routing(
                routers=np.asarray(levels.routers, dtype=np.str_),
                parents=np.asarray(levels.parents, dtype=np.int64),
                retention_ratios=np.asarray(levels.retention_ratios, dtype=np.float64),
                block_levels=np.asarray(levels.block_levels, dtype=np.int64),
                bypass_scale=np.asarray(levels.bypass_scale, dtype=np.float32).reshape(run.num_levels, -1),
                thresholds=np.asarray(levels.thresholds, dtype=np.float32),
                reached=run.reached(lists["kept"]),
                kept=kept,
                edited=np.zeros(shape, dtype=np.bool_),
                weights=unknown,
                scores=by_level("score"),
                stream_norm=by_level("norm"),
                difference_norm=unknown,
                contribution_norm=unknown,
                site_kinds=np.asarray(levels.site_kinds, dtype=np.str_),
                site_blocks=np.asarray(levels.site_blocks, dtype=np.int64),
                strides=np.asarray(levels.strides, dtype=np.int64),
            ),
            likelihood=Likelihood(lists["surprisal"].astype(np.float32)),
            provenance=Provenance(
                checkpoint=run.checkpoint,
                digest=run.digest,
                structure=run.structure,
                device=run.device,
                dtype=run.options.dtype,
                attention=run.attention_kernel,
                dense="",
                versions=run.versions,
            ),
        )


def _of_all_tokens(measures: pd.DataFrame, tokens: int) -> pd.DataFrame:
    """Measures whose shares of paths are of all tokens; those of older summaries are of the listed paths' tokens."""
    own = measures["measure"] == "path"
    listed = measures.loc[own, "tokens"].sum()
    if listed < tokens and measures.loc[own, "value"].sum() > 1 - 1e-6:
        measures.loc[own, ["value", "low", "high", "error"]] *= listed / tokens
        measures.loc[own, "resampled"] = measures.loc[own, "resampled"].map(
            lambda each: each * (listed / tokens), na_action="ignore"
        )
    return measures


def _renamed(name: str, sources: Mapping[str, str]) -> str:
    """A document's name, which begins with that of its source."""
    source = next((source for source in sources if name.startswith(source)), None)
    return name if source is None else sources[source]


_SCALARS = ("document", "name", "position", "text")


def _opened(path: Path) -> pa.Table:
    """A table that is no larger than those of summaries are, whatever its compressed file says.

    Raises:
        CorpusError: if it is missing, damaged or larger.
    """
    if not path.is_file():  # a pipe would be waited for
        raise unreadable(path, FileNotFoundError("there is no such file"))
    size = path.stat().st_size
    parts: list[pa.RecordBatch] = []
    try:
        if size <= _LARGEST:
            size = 0
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(_ROWS):
                    parts.append(part)
                    size += part.nbytes
                    if size > _LARGEST:
                        break
                else:
                    return pa.Table.from_batches(parts, file.schema_arrow)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    raise CorpusError(
        "{path} has more than {size:,.0f} MB, which is more than a summary has; run the same command "
        "again, which makes it anew.",
        path=path.name,
        size=_LARGEST / 1e6,
    )


def _typed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its types.

    Raises:
        KeyError: if one is missing.
        ValueError: if one is of another type.
    """
    return table.select(schema.names).cast(schema)


def _check(run: CorpusRun, about: About, tables: Mapping[str, pa.Table]) -> None:
    """Check that what refers to something refers to what is there.

    Raises:
        TypeError: if a value is of another type.
        ValueError: if a level, an excerpt, a token or a character is not there, or lists differ in length.
    """
    for level in about.levels:
        if not 1 <= level <= run.num_levels:
            raise ValueError(f"there is no level {level}")
    for name in (_MEASURES, _EXAMPLES):
        if any(table_column.null_count for table_column in map(tables[name].column, ("group", "cell", "level"))):
            raise ValueError(f"{name} has empty cells")
        _check_range(f"a level in {name}", tables[name]["level"].to_numpy(), 0, run.num_levels + 1)
    excerpts, examples = tables[_EXCERPTS], tables[_EXAMPLES]
    if any(column.null_count for column in (*excerpts.columns, *examples.columns)):
        raise ValueError("an example or excerpt has empty cells")
    lengths = pc.list_value_length(excerpts["starts"]).to_numpy()
    for each in excerpts.schema:
        if pa.types.is_list(each.type):
            column = excerpts[each.name]
            if (pc.list_value_length(column).to_numpy() != lengths).any() or pc.list_flatten(column).null_count:
                raise ValueError(f"{each.name} has another number of tokens than starts")
    own = np.repeat(pc.utf8_length(excerpts["text"]).to_numpy(), lengths)
    starts, ends = (pc.list_flatten(excerpts[name]).to_numpy() for name in ("starts", "ends"))
    _check_range("the beginning of a token", starts, 0, own + 1)
    _check_range("the end of a token", ends, starts, own + 1)
    chosen = examples["excerpt"].to_numpy()
    _check_range("an excerpt", chosen, 0, len(excerpts))
    _check_range("a token", examples["token"].to_numpy(), 0, lengths[chosen])


def _check_range(name: str, values: np.ndarray, low: int | np.ndarray, high: int | np.ndarray) -> None:
    """Check that low ≤ values < high."""
    wrong = (values < low) | (values >= high)
    if wrong.any():
        raise ValueError(f"{name} is out of range: {values[wrong][0]}")


def write_summary(folder: Path, about: About, tables: Mapping[str, pa.Table]) -> None:
    """Write the tables of a summary, in one step each, and `summary.json` last.

    Args:
        folder: of the corpus result.
        about: what `summary.json` is to say.
        tables: measures, documents, examples and excerpts by these names.

    Raises:
        DiskFullError: if the disk is full.
    """
    place = folder / SUMMARY
    with full_disk_reported(place):
        for name in (_ABOUT, _RULES):  # the rules are of the tokens that were there
            (place / name).unlink(missing_ok=True)
        with added_whole(place) as partial:
            for name, table in tables.items():
                pq.write_table(table, partial / f"{name}.parquet", compression="zstd")
        with added_whole(place) as partial:
            content = {"format": FORMAT} | asdict(about)
            (partial / _ABOUT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_rules(folder: Path, table: pa.Table) -> None:
    """Write what other rules lose, beside the other tables of a summary."""
    with full_disk_reported(folder / SUMMARY), added_whole(folder / SUMMARY) as partial:
        pq.write_table(table, partial / _RULES, compression="zstd")
