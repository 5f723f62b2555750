"""Is the learned selection better than a simple one, over documents of a corpus and not one prompt alone?

Documents are sampled from a corpus result, and the first tokens of each are read under every rule of
`analysis.quality.rivals`.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint

from ..errors import AnalysisError, CorpusError
from ..guard import Progress, ids_on_device, silent
from ..quality.needles import needle_prompt
from ..quality.rivals import FEWEST_TOKENS, Comparison, compare_rules, oracle_passes
from ..quality.selection_rules import SelectionRule
from ..trace.parts import Prompt
from ..trace.prefill import prefill, provenance_of
from ..trace.tokenize import prompt_of_ids, read_prompt
from ..trace.trace import Trace
from .paths import PathCounts
from .schema import DOCUMENTS, TEXTS, CorpusRun, name_of
from .shards import read_shards, read_table
from .statistics import benjamini_hochberg, chances, estimates, mixed, resample_weights
from .summary import write_rules

RULES = pa.schema(
    [
        pa.field("rule", pa.string()),
        pa.field("own_weights", pa.bool_()),
        pa.field("loss", pa.float64()),
        pa.field("difference", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("chance", pa.float64()),
        pa.field("marked", pa.bool_()),
        pa.field("agreement", pa.float64()),
        pa.field("divergence", pa.float64()),
        pa.field("found", pa.float64()),
        pa.field("tokens", pa.int64()),
        pa.field("documents", pa.int64()),
    ]
)
"""Columns of `rules.parquet`, by rising loss: a rule of `analysis.quality.selection_rules.SelectionRule`, its loss in
nats per token, the difference to the recorded selection with weights of 1 and its interval over documents, the p-value
of there being none, whether it survives the correction for all rows, the share of tokens after which the dense model
ranks the same next token first, the mean divergence from it in nats, and the share of hidden numbers that are found
(NaN where none were hidden, and for the oracle)."""

_DEPTHS = (0.1, 0.5, 0.9)  # shares of a document before the number that is hidden in it, in turn


class _Sums(NamedTuple):
    """Sums over the tokens of one document under one rule; draws are averaged."""

    surprisal: float
    agrees: float
    divergence: float
    found: float  # share of draws that find the number; NaN without one


def corpus_rivals(
    folder: Path,
    checkpoint: Checkpoint,
    dense: DenseModel,
    *,
    documents: int = 32,
    tokens: int = 256,
    oracle: bool = False,
    needles: bool = False,
    progress: Progress = silent,
) -> pa.Table:
    """Run other rules over documents of a corpus result, and write `summary/rules.parquet`.

    Args:
        folder: of the result, with its shards and texts.
        checkpoint: that made it.
        dense: dense model whose surprisal one of the rules uses, and with whose predictions all are compared.
        documents: number of documents, at least 1, in an order that is the same for all results over the same texts.
        tokens: of the beginning of each document that are read, at least `FEWEST_TOKENS`.
        oracle: run the oracle as well, on documents that are short enough for it; the others are left out.
        needles: hide a number in each document as well, if it is long enough, and see under which rules the model finds
            it.
        progress: receives the progress; may raise to stop.

    Returns:
        The table, see `RULES`.

    Raises:
        CorpusError: if one of the numbers is too small, the result is of another checkpoint or has no texts, or no
            document is long enough, or short enough for the oracle.
        AnalysisError: if the model has no level whose selection could be replaced.
    """
    if documents < 1:
        raise CorpusError("The number of documents is {documents}; give 1 or more.", documents=documents)
    if tokens < FEWEST_TOKENS:
        raise CorpusError(
            "The number of tokens is {tokens}; give {fewest} or more, since shorter texts say little of a rule.",
            tokens=tokens,
            fewest=FEWEST_TOKENS,
        )
    run = CorpusRun.read(folder)
    if run.digest != checkpoint.digest:
        raise CorpusError(
            "The result {folder} was made with the checkpoint {name}, and this is another one: their weights differ. "
            "Name that one with --checkpoint.",
            folder=folder.name,
            name=run.checkpoint,
        )
    if not run.options.texts:
        raise CorpusError(
            "{folder} was made with --no-text, so its documents cannot be read again.", folder=folder.name
        )
    counts = PathCounts(run)
    for shard in read_shards(run, folder, ["id", "kept"]):
        counts.add(shard)
    occurrences = counts.occurrences(run.vocabulary)
    sample = _sample(run, folder, documents)
    sums: dict[tuple[SelectionRule, bool], list[_Sums]] = defaultdict(list)
    keys: list[int] = []
    lengths: list[int] = []

    def compared(seed: int, trace: Trace, answer: Sequence[int] = (), *, oracle: bool = False) -> Comparison:
        own = occurrences[trace.prompt.token_ids]
        *_, whole = compare_rules(
            checkpoint, dense, trace, answer, oracle=oracle, occurrences=own, seed=seed, progress=progress
        )  # fmt: skip
        return whole

    for number, (key, text) in enumerate(sample):  # every document draws random numbers of its own
        progress(number / len(sample), "rivals", done=number, length=len(sample))
        trace = _trace(checkpoint, read_prompt(text, checkpoint.tokenizer, tokens, truncate=True))
        if trace.num_tokens < FEWEST_TOKENS or (oracle and not oracle_passes(trace)):
            continue
        hidden = _hide(checkpoint, trace.prompt, _DEPTHS[len(keys) % len(_DEPTHS)], key) if needles else None
        hiding = None if hidden is None else compared(key, *hidden)
        for case, each in _summed(compared(key, trace, oracle=oracle), hiding).items():
            sums[case].append(each)
        keys.append(key)
        lengths.append(trace.num_tokens - 1)
    if not keys and oracle and sample:
        raise CorpusError(
            "The oracle takes a pass for every token that reaches a level, and none of the {documents} documents that "
            "were read is short enough for it. Give fewer tokens, or leave out the oracle.",
            documents=len(sample),
        )
    if not keys:
        raise CorpusError(
            "No document of {folder} has {fewest} tokens, so other rules cannot be compared on them.",
            folder=folder.name,
            fewest=FEWEST_TOKENS,
        )
    table = _table(sums, np.array(keys, dtype=np.uint64), np.array(lengths))
    write_rules(folder, table)
    return table


def _sample(run: CorpusRun, folder: Path, documents: int) -> list[tuple[int, str]]:
    """Keys and texts of documents, those first that come first in the pseudo-random order of their texts."""
    found: list[tuple[int, int, int]] = []
    for shard in run.shards:
        table = read_table(folder / name_of(DOCUMENTS, shard.number), ["document", "tokens", "digest"])
        keys = mixed(np.array([int(digest[:16], 16) for digest in table["digest"].to_pylist()], dtype=np.uint64))
        rows = zip(keys.tolist(), table["document"].to_pylist(), table["tokens"].to_pylist(), strict=True)
        found += [(key, shard.number, document) for key, document, length in rows if length >= FEWEST_TOKENS]
        found = sorted(found)[:documents]
    texts: dict[int, str] = {}
    for number in sorted({number for _, number, _ in found}):
        wanted = {document for _, shard, document in found if shard == number}
        table = pq.read_table(folder / name_of(TEXTS, number), columns=["document", "text"])
        known = zip(table["document"].to_pylist(), table["text"].to_pylist(), strict=True)
        texts |= {document: text for document, text in known if document in wanted}
    return [(key, texts[document]) for key, _, document in found]


@torch.inference_mode()
def _trace(checkpoint: Checkpoint, prompt: Prompt) -> Trace:
    read = prefill(checkpoint.model, ids_on_device(checkpoint.model, prompt.token_ids))
    return Trace(prompt, read.routing, provenance_of(checkpoint, None))


def _hide(checkpoint: Checkpoint, prompt: Prompt, depth: float, seed: int) -> tuple[Trace, list[int]] | None:
    """A document that ends earlier, with a number hidden in it and asked for at its end, and the ids of the number.

    None if it is too short for that.
    """
    document = prompt.token_ids.tolist()
    try:
        ids, answer, _ = needle_prompt(checkpoint, document, len(document), depth, random.Random(seed))
    except AnalysisError:
        return None
    return _trace(checkpoint, prompt_of_ids(np.array(ids), checkpoint.tokenizer)), answer


def _summed(found: Comparison, hiding: Comparison | None) -> dict[tuple[SelectionRule, bool], _Sums]:
    """Sums of every rule, once with its own weights where that was run.

    Args:
        found: the document.
        hiding: the document with a number hidden in it.
    """
    cases: dict[tuple[SelectionRule, bool], list[_Sums]] = defaultdict(list)
    numbers = {} if hiding is None else {(run.rule, run.draw, run.own_weights): run.found for run in hiding.runs}
    for each in found.runs:
        one = _Sums(
            float(each.surprisal[1:].sum(dtype=np.float64)),
            float(each.agrees[:-1].sum()),
            float(each.divergence[:-1].sum(dtype=np.float64)),
            float(numbers.get((each.rule, each.draw, each.own_weights), np.nan)),
        )
        cases[each.rule, each.own_weights].append(one)
    return {case: _Sums(*np.mean(draws, axis=0).tolist()) for case, draws in cases.items()}


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _table(sums: dict[tuple[SelectionRule, bool], list[_Sums]], keys: np.ndarray, lengths: np.ndarray) -> pa.Table:
    weights = resample_weights(keys).T  # (R, N)
    recorded = np.array([each.surprisal for each in sums[SelectionRule.RECORDED, False]])
    total, resampled_total = lengths.sum(), weights @ lengths
    count = np.array([len(keys)])
    rows = []
    for (rule, own_weights), each in sums.items():
        values = np.array(each)
        apart = values[:, 0] - recorded
        itself = rule == SelectionRule.RECORDED and not own_weights
        with np.errstate(invalid="ignore"):
            resampled = (weights @ apart / resampled_total)[:, None]
        found = estimates(np.array([apart.sum() / total]), resampled, count)
        chance = np.nan if itself else chances(found.values, found.errors, count)[0]
        rows.append(
            {
                "rule": str(rule),
                "own_weights": own_weights,
                "loss": values[:, 0].sum() / total,
                "difference": found.values[0],
                "low": found.low[0],
                "high": found.high[0],
                "chance": chance,
                "agreement": values[:, 1].sum() / total,
                "divergence": values[:, 2].sum() / total,
                "found": _mean_of_known(values[:, 3]),
                "tokens": int(total),
                "documents": len(keys),
            }
        )
    marked = benjamini_hochberg(np.array([row["chance"] for row in rows], dtype=np.float64))
    rows = [row | {"marked": mark} for row, mark in zip(rows, marked.tolist(), strict=True)]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["loss"]), schema=RULES)
