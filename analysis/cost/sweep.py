"""Time, memory and energy of a SUBLLM against a dense LLaMA: same prompts, dtype and attention kernel.

Both models read the same text, in turn. The limit beside each speed-up is the ratio of their operations
(`analysis.cost.operations`), with the tokens that this run kept.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
import transformers

from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.device import device_name, dtype_name
from subllm.checkpoints.load import Checkpoint
from subllm.errors import first_line
from subllm.structure import parse_structure

from ..errors import AnalysisError
from .comparison import DECODE_AGAINST, WRITING, Comparison, Setting
from .page import page

LENGTHS = (512, 2048, 4096, 8192)
_FACTS = "facts"
_MOST_ROWS, _MOST_BYTES, _LARGEST_NUMBER = 10_000, 64 << 20, 8  # of a file of measurements


def settings_of(
    lengths: Sequence[int], batches: Sequence[int] = (1,), retentions: Sequence[float] = (0.0,)
) -> list[Setting]:
    """All combinations, the cheapest first.

    Args:
        lengths: of prompts, in tokens.
        batches: prompts read together.
        retentions: share that every level is made to keep; 0 leaves the thresholds alone.

    Raises:
        AnalysisError: if a retention is out of range.
    """
    for share in retentions:
        if not 0 <= share <= 1:
            raise AnalysisError(
                "A retention of {share} cannot be measured; it must be in (0, 1], or 0 for the model's own thresholds.",
                share=share,
            )
    found = {Setting(length, batch, share) for length in lengths for batch in batches for share in retentions}
    return sorted(found, key=lambda setting: (setting.tokens * setting.batch, setting))


def machine(device: torch.device | str) -> dict[str, str]:
    """What a measurement ran on."""
    processor = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "device": device_name(torch.device(device)),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def facts_of(checkpoint: Checkpoint, against: str, repeats: int) -> dict[str, str]:
    """What must be the same for two measurements to be of one sweep.

    Args:
        checkpoint: measured.
        against: baseline.
        repeats: timed passes of each model.
    """
    model = checkpoint.model
    return machine(model.device) | {
        "dtype": dtype_name(model),
        "attention": str(model.config._attn_implementation),
        "structure": str(model.config.structure),
        "checkpoint": checkpoint.digest,
        "baseline": against,
        DECODE_AGAINST: WRITING,
        "repeats": str(repeats),
    }


def to_parquet(facts: dict[str, str], rows: Sequence[Comparison]) -> bytes:
    """Measurements as a Parquet file, one row per setting, the facts in its metadata.

    Args:
        facts: as from `facts_of`.
        rows: measured.
    """
    frame = pd.DataFrame([asdict(row) for row in rows])
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _FACTS: json.dumps(facts)})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes) -> tuple[dict[str, str], list[Comparison]]:
    """What `to_parquet` wrote.

    Args:
        data: of the file.

    Raises:
        AnalysisError: if it is no such file.
    """
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        _check_size(file)
        table = file.read()
        facts = json.loads(table.schema.metadata[_FACTS.encode()])
        rows = [Comparison(**_without_none(row)) for row in table.to_pylist()]
        report(facts, rows)  # takes everything that is shown
        for row in rows:
            if len(row.level_bytes) != 1 + parse_structure(row.structure).num_levels:
                raise ValueError(f"the cache has {len(row.level_bytes)} levels, not those of {row.structure!r:.40}")
        if not rows:
            raise ValueError("it has no rows")
    except (
        pyarrow.ArrowException,
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise AnalysisError(
            "This is not a Parquet file of measurements saved by this app or by the command above ({words}).",
            words=first_line(error),
        ) from error
    return {str(key): str(value) for key, value in facts.items()}, rows


def _check_size(file: pyarrow.parquet.ParquetFile) -> None:
    """See that a file is as small as it looks before it is read: a repeated value takes no place in it.

    Raises:
        ValueError: if it is not, or has other columns than measurements have.
    """
    known, found = {field.name for field in fields(Comparison)}, set(file.schema_arrow.names)
    if not found <= known:
        raise ValueError(f"it has a column {first_line(sorted(found - known)[0])[:40]!r}")
    if file.metadata.num_rows > _MOST_ROWS:
        raise ValueError(f"it has {file.metadata.num_rows:,} rows; at most {_MOST_ROWS:,} are read")
    size = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            each = column.total_uncompressed_size if column.physical_type.endswith("BYTE_ARRAY") else _LARGEST_NUMBER
            size += column.num_values * each
    if size > _MOST_BYTES:
        raise ValueError(f"it would take {size / 2**20:,.0f} MiB; at most {_MOST_BYTES >> 20} MiB are read")


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    """Parquet gives every row all keys of a column of mappings; those that a row lacks are None."""
    return {
        name: {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
        for name, value in row.items()
    }


def load_rows(file: Path, facts: dict[str, str]) -> list[Comparison]:
    """What an earlier run measured.

    Args:
        file: that it wrote; none need be there.
        facts: about this machine, checkpoint and run, which must be the same.

    Raises:
        AnalysisError: if the file is of another machine, checkpoint or version, or cannot be read.
    """
    if not file.exists():
        return []
    try:
        found, rows = from_parquet(file.read_bytes())
    except (OSError, AnalysisError) as error:
        raise AnalysisError(
            "{file} cannot be resumed ({error}); leave out --resume to measure again.", file=file, error=error
        ) from error
    differing = [key for key in sorted({*facts, *found}) if facts.get(key) != found.get(key)]
    if differing:
        raise AnalysisError(
            "{file} was measured with another {differing}; leave out --resume to measure again.",
            file=file,
            differing=", ".join(differing),
        )
    return rows


def table(rows: Sequence[Comparison]) -> str:
    """Markdown table of comparisons; every ratio is measured but for the limits, which are counted."""
    lines = [
        "| prompt tokens | kept per level | prefill speed-up (spread) | processor time | limit | reached "
        "| decode speed-up | limit | tokens/s prefill, decode | cache | peak of tensors | of the process "
        "| recording costs | trace costs | dense structure costs | routing | new token by blocks: time (share) |",
        f"| ---: | --- {'| ---: ' * 14}| --- |",
    ]
    for row in rows:
        speed = row.ratio("dense", "subllm")
        costs = [
            f"{row.ratio(slow, fast) - 1:+.1%}" if slow in row.seconds else "–"
            for slow, fast in (("recording", "subllm"), ("trace", "subllm"), ("dense structure", "dense"))
        ]
        resident = "–" if row.resident_ratio is None else f"{row.resident_ratio:.2f}×"
        cells, graphs = row.decode_by_blocks().items(), " (graphs)" if row.graphs else ""
        lines.append(
            f"| {row.setting.words} | {', '.join(f'{share:.0%}' for share in row.retention)} "
            f"| {speed:.2f}× ({row.spread('dense'):.2f}, {row.spread('subllm'):.2f}) "
            f"| {row.busy_ratio('dense', 'subllm'):.2f}× | {row.prefill_limit:.2f}× "
            f"| {speed / row.prefill_limit:.0%} | {row.ratio('dense decode', 'subllm decode'):.2f}×{graphs} "
            f"| {row.decode_limit:.2f}× | {row.throughput('subllm'):,.0f}, {row.throughput('subllm decode'):,.1f} "
            f"| {row.cache_bytes[0] / row.cache_bytes[1]:.2f}× | {row.peak_bytes[0] / row.peak_bytes[1]:.2f}× "
            f"| {resident} | {' | '.join(costs)} | {row.routing_share:.1%} "
            f"| {', '.join(f'{blocks}: {time:.2f} ({share:.2f})' for blocks, (time, share) in cells)} |"
        )
    return "\n".join(lines)


def report(facts: dict[str, str], rows: Sequence[Comparison]) -> str:
    """Markdown page of measurements.

    Args:
        facts: as from `facts_of`.
        rows: measured.
    """
    about = """\
Measured by `subllm efficiency`: the checkpoint and its baseline, in turn. Prefill: medians of the ratios of passes
that ran in turn. Decode: the ratio of the mean times of new tokens; the dense model that writes them is our model
without brackets, because the cache of LlamaForCausalLM copies all keys and values for every token. Spread is the
slowest pass over the fastest (dense, SUBLLM). "Processor time" is the same ratio by the process's clock. "Limit"
counts operations; "reached" is the speed-up over the limit. "Recording" is of the routing, "trace" of all that the
page shows; "dense structure" is our model without brackets over LlamaForCausalLM. Cache and peaks (of tensors beyond
the weights, and of the process as the system sees it) are SUBLLM over dense. "Routing" is the share of reading that
goes into entering and leaving levels. The last column tells new tokens apart by how many blocks ran for them: their
time over the dense model's (medians), and those blocks' share of all. "Graphs": both models launched their blocks as
CUDA graphs for new tokens."""
    return page("SUBLLM against a dense LLaMA", about, table(rows), facts)


def save(folder: Path, name: str, facts: dict[str, str], rows: Sequence[Comparison]) -> None:
    """Write page and Parquet file after every setting, so that a run that is stopped loses one at most.

    Raises:
        DiskFullError: if the disk is full; both files are as they were then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        full_disk_reported(folder, lambda: f"{name}.md and {name}.parquet are as they were before this setting"),
        written_whole(folder / f"{name}.md") as page,
        written_whole(folder / f"{name}.parquet") as file,
    ):
        page.write_text(report(facts, rows))
        file.write_bytes(to_parquet(facts, rows))
