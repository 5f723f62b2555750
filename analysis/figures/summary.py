"""What a run keeps and costs, in words and numbers as pages and reports show them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..trace.parts import UNTOUCHED, Cost
from ..trace.statistics import rule_overlap
from ..trace.trace import Trace
from .quoted import quoted
from .strings import spoken
from .terms import common_word, device_words, level_name, level_words, system_name
from .words import Words

_LEVELS = 4  # that have a cell of their own
_MEAN = (("keeps_mean", " / "), ("keeps_help", "\n\n"))
_SIZES: tuple[tuple[str, Callable[[Cost], int]], ...] = (
    ("cost_peak", lambda cost: cost.peak_bytes),
    ("cost_cache", lambda cost: cost.cache_bytes),
)


class Figure(NamedTuple):
    """A number with its label.

    Attributes:
        label: what it is.
        value: the number.
        note: what it is compared with; may be empty.
        help: what it means.
    """

    label: str
    value: str
    note: str
    help: str


def headline(trace: Trace, words: Words) -> list[Figure]:
    """The most important numbers."""
    routing = trace.routing
    found = [Figure(words["prompt_tokens"], f"{trace.num_tokens:,}", "", words["tokens_help"])]
    found += _retention(trace, words) if routing.num_levels <= _LEVELS else [_mean_retention(trace, words)]
    found.append(Figure(words["work"], f"{work(trace):.0%}", words["of_dense"], words["work_help"]))
    if trace.costs is not None:
        speed = trace.costs.dense.median_seconds / trace.costs.subllm.median_seconds
        note = words["dense_speed" if trace.costs.passes > 1 else "dense_speed_once"]
        found.append(Figure(words["reading"], f"{speed:.2f}×", note, words["reading_help"]))
    return found


def _retention(trace: Trace, words: Words) -> list[Figure]:
    """What every level keeps."""
    routing, found = trace.routing, []
    for level, kept, nominal in zip(routing.levels, routing.retention, routing.retention_ratios, strict=True):
        own = level_words(trace, level, words)
        found.append(
            Figure(
                own["keeps"].format(level=level_name(trace, level, words)),
                "–" if np.isnan(kept) else f"{kept:.0%}",
                words["nominal_share"].format(share=f"{nominal:.0%}"),
                own["keeps_help"],
            )
        )
    return found


def _mean_retention(trace: Trace, words: Words) -> Figure:
    """What all levels keep on average, where there are too many to stand side by side."""
    known = trace.routing.retention[~np.isnan(trace.routing.retention)]
    label, explained = (common_word(trace, key, words, between) for key, between in _MEAN)
    if not len(known):
        return Figure(label, "–", "", explained)
    spread = words["keeps_spread"].format(low=f"{known.min():.0%}", high=f"{known.max():.0%}")
    return Figure(label, f"{known.mean():.0%}", spread, explained)


def work(trace: Trace) -> float:
    """Share of the dense model's work that was done: the mean over blocks and tokens of what each took of a block's."""
    return float(trace.routing.work.mean(dtype=np.float64)) if trace.routing.work.size else 0.0


def level_table(trace: Trace, words: Words) -> pd.DataFrame:
    """Kept and merged tokens of every level, and their overlap with those of the training rule."""
    rows, routing = {}, trace.routing
    for level in routing.levels:
        row = level - 1
        reached, kept, merged = (int(each[row].sum()) for each in (routing.reached, routing.kept, routing.merged))
        rows[level_name(trace, level, words)] = {
            words["overview_reached"]: f"{reached:,}",
            common_word(trace, "overview_kept", words): f"{kept:,}",
            words["overview_merged"]: f"{merged:,}",
            words["overview_share"]: f"{kept / reached:.1%}" if reached else "–",
            words["overview_nominal"]: f"{routing.retention_ratios[row]:.1%}",
            common_word(trace, "overview_overlap", words): f"{rule_overlap(routing, level).overlap:.0%}"
            if routing.scores_tokens(level)
            else "–",
        }
    found = pd.DataFrame.from_dict(rows, orient="index")
    if not routing.merges.any():
        found = found.drop(columns=words["overview_merged"])
    if not any(routing.scored):
        found = found.drop(columns=common_word(trace, "overview_overlap", words))
    return found


def cost_table(trace: Trace, words: Words) -> pd.DataFrame:
    """Time, memory and perplexity of the run and of its reference; without rows if neither was measured."""
    costs, agreement, likelihood = trace.costs, trace.agreement, trace.likelihood
    rows: list[tuple[str, float, float]] = []
    if costs is not None:
        time = words["cost_time" if costs.passes > 1 else "cost_time_once"]
        rows.append((time, 1000 * costs.subllm.median_seconds, 1000 * costs.dense.median_seconds))
        rows += [(words[name], size(costs.subllm) / 2**20, size(costs.dense) / 2**20) for name, size in _SIZES]
    if likelihood is not None and agreement is not None and trace.num_tokens > 1:
        rows.append((words["cost_perplexity"], likelihood.perplexity, agreement.perplexity))
    untouched = agreement is not None and agreement.reference == UNTOUCHED
    own, other = (
        (words["figure_edited"], words["figure_untouched"]) if untouched else (_own_name(trace, words), words["dense"])
    )
    columns = {
        own: [f"{value:,.2f}" for _, value, _ in rows],
        other: [f"{value:,.2f}" for _, _, value in rows],
        f"{own} / {other}": [f"{mine / theirs:.2f}" for _, mine, theirs in rows],
    }
    return pd.DataFrame(columns, index=[name for name, _, _ in rows])


def agreement(trace: Trace, words: Words) -> str:
    """How far the predictions agree with those of the reference; empty if they were not compared."""
    found = trace.agreement
    if found is None:
        return ""
    return words["agreement"].format(share=f"{found.agrees.mean():.0%}", kl=f"{found.divergence.mean():.2f}")


def measured(trace: Trace, words: Words) -> str:
    """How time and memory were measured; that they were not, if so."""
    costs, where = trace.costs, trace.provenance
    if costs is None:
        return words["not_measured"]
    spread = words["comma"].join(
        f"{name} {_span(cost.seconds)} ms"
        for name, cost in ((_own_name(trace, words), costs.subllm), (words["dense"], costs.dense))
    )
    return spoken(
        words,
        "measured",
        device=device_words(where.device, words),
        dtype=where.dtype,
        attention=where.attention,
        n=costs.passes,
        spread=spread,
        dense=words[f"dense_{where.dense}"],
        versions=where.versions,
    )


def _span(seconds: Sequence[float]) -> str:
    """The shortest and the longest of some times, in milliseconds."""
    ends = [f"{1000 * each:,.1f}" for each in (min(seconds), max(seconds))]
    return " – ".join(ends if len(seconds) > 1 else ends[:1])


def next_tokens(trace: Trace) -> list[tuple[str, float]]:
    """The likeliest next tokens, quoted, with their probabilities; none if they were not measured."""
    found = trace.predictions
    if found is None:
        return []
    return [
        (quoted(str(piece)), float(probability))
        for piece, probability in zip(found.next_pieces, found.next_probabilities, strict=True)
    ]


def new_tokens(trace: Trace, words: Words) -> str:
    """How many tokens of the continuation each level kept; empty without a continuation, and without levels."""
    found = trace.continuation
    if found is None or not trace.routing.num_levels:
        return ""
    kept = [
        words["labelled"].format(label=level_name(trace, level, words), value=f"{found.kept[level - 1].sum():,}")
        for level in trace.routing.levels
    ]
    return common_word(trace, "new_kept", words).format(n=len(found.ids)) + " " + words["comma"].join(kept)


def overlap_table(first: Trace, found: pd.DataFrame, words: Words) -> pd.DataFrame:
    """The overlap of two runs at each level, as `analysis.trace.pairs.overlap` found it.

    Args:
        first: the run that names the levels.
        found: the overlap.
        words: labels by key.
    """
    shown = pd.DataFrame(
        {
            words["beside_kept_first"]: found["kept_first"].map("{:.0%}".format),
            words["beside_kept_second"]: found["kept_second"].map("{:.0%}".format),
            words["beside_both"]: found["both"].map(lambda value: "–" if np.isnan(value) else f"{value:.0%}"),
            words["beside_differ"]: found["differ"].map("{:,}".format),
            words["beside_correlation"]: found["correlation"].map(
                lambda value: "–" if np.isnan(value) else f"{value:.3f}"
            ),
        }
    )
    shown.index = pd.Index([level_name(first, level, words) for level in found.index])
    return shown


def _own_name(trace: Trace, words: Words) -> str:
    """What the model that ran is called, such as "Mixture-of-Depths"."""
    return system_name(trace.routing.routers.tolist(), words)
