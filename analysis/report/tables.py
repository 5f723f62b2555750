"""Tables of a trace for other programs: a row for each token, and a row for each level (docs/formats.md)."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd

from ..trace.spreadsheet import cell
from ..trace.trace import Trace

LEVEL_OF_TOKEN_COLUMNS = ("reached", "kept", "edited", "score", "weight", "contribution")
LEVEL_COLUMNS = (
    "level", "router", "kind", "block", "parent", "stride", "nominal_retention", "threshold", "reached", "kept",
    "merged", "retention", "mean_weight", "mean_contribution",
)  # fmt: skip


def token_table(trace: Trace) -> pd.DataFrame:
    """A row for each of the T tokens; the columns of Level 1 end in `_1`. What was not measured has no column."""
    prompt, routing = trace.prompt, trace.routing
    columns: dict[str, Any] = {
        "token": np.arange(trace.num_tokens),
        "id": prompt.token_ids,
        "text": prompt.pieces.astype(object),
        "start": prompt.starts,
        "end": prompt.ends,
    }
    if trace.likelihood is not None:
        columns["surprisal"] = trace.likelihood.surprisal
    if trace.agreement is not None:
        columns["reference_surprisal"] = trace.agreement.surprisal
        columns["divergence"] = trace.agreement.divergence
        columns["agrees"] = trace.agreement.agrees
    by_level = (
        routing.reached, routing.kept, routing.edited, routing.scores, routing.weights, routing.contribution_share
    )  # fmt: skip
    for level in routing.levels:
        for name, values in zip(LEVEL_OF_TOKEN_COLUMNS, by_level, strict=True):
            columns[f"{name}_{level}"] = values[level - 1]
    return pd.DataFrame(columns)


def level_table(trace: Trace) -> pd.DataFrame:
    """A row for each of the S levels. Means are over the tokens that reached the level."""
    routing = trace.routing
    columns = (
        routing.levels, routing.routers.astype(object), routing.site_kinds.astype(object), routing.site_blocks,
        routing.parents, routing.strides, routing.retention_ratios, routing.thresholds, routing.reached.sum(1),
        routing.kept.sum(1), routing.merged.sum(1), routing.retention, _mean(routing.weights, routing.reached),
        _mean(routing.contribution_share, routing.reached),
    )  # fmt: skip
    return pd.DataFrame(dict(zip(LEVEL_COLUMNS, map(np.asarray, columns), strict=True)))


def _mean(values: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """(S,) mean of (S, T) values over the tokens that reached each level; NaN where none did."""
    total = np.where(reached, values, 0).sum(1, dtype=np.float64)
    found: np.ndarray = np.where(reached.any(1), total / np.maximum(reached.sum(1), 1), np.nan)
    return found


def csv(table: pd.DataFrame) -> bytes:
    """A table as CSV in UTF-8, with empty cells for NaN.

    The column `text` holds JSON strings, so that white space is seen; no text is a formula to a spreadsheet.
    """
    if "text" in table:
        table = table.assign(text=[json.dumps(text, ensure_ascii=False) for text in table["text"]])
    texts = table.select_dtypes(["object", "string"])
    table = table.assign(
        **{name: texts[name].map(lambda each: cell(each) if isinstance(each, str) else each) for name in texts}
    )
    return table.to_csv(index=False, lineterminator="\n").encode()


def parquet(table: pd.DataFrame) -> bytes:
    """A table as Parquet; pyarrow writes it."""
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()
