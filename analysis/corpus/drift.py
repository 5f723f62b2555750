"""Two corpus results next to each other: other texts, another checkpoint, or another step of a training."""

import numpy as np
import pandas as pd

from ..errors import CorpusError
from .statistics import Estimates, benjamini_hochberg, chances, estimates, few_outcomes, quantiles
from .summary import Summary

_KEY = ["measure", "level", "group", "cell"]


def drift(first: Summary, second: Summary) -> pd.DataFrame:
    """What differs between two results, the second one minus the first.

    Both took the same resamples of the documents that they share, so that two checkpoints over the same documents are
    compared as pairs; documents of one result alone vary on their own. Where either has few kept or few dropped tokens
    in a cell, the resamples do not say how the difference varies, and the errors of both are added up.

    Args:
        first: a result.
        second: another one.

    Returns:
        A row for each number that both have, with the columns measure, level, group, cell, first, second, difference,
        error, low, high, chance (of there being no difference), marked (whether it survives the correction for all
        rows), tokens and documents (the smaller numbers of both); those first whose difference is most of its error,
        and last those without an error.

    Raises:
        CorpusError: if both have no level in common.
    """
    if not {*first.about.levels} & {*second.about.levels}:
        raise CorpusError(
            "The two results have no level in common at which a router keeps or drops tokens: {first} and {second}. "
            "Compare results of checkpoints with such levels.",
            first=first.run.structure,
            second=second.run.structure,
        )
    both = first.measures.merge(second.measures, on=_KEY, suffixes=("_first", "_second"))
    own = both["group"].str.startswith(("type", "document"))  # numbers that may mean others there
    both = both[~own & (both["measure"] != "entropy")].reset_index(drop=True)  # whose parts are others
    difference = (both["value_second"] - both["value_first"]).to_numpy()
    documents = both[["documents_first", "documents_second"]].min(axis=1).to_numpy()
    size = min(first.about.resamples, second.about.resamples)
    resampled = _deviations(both["resampled_second"], size) - _deviations(both["resampled_first"], size)
    found = _with_rare(estimates(difference, difference + resampled.T, documents), both, documents)
    chance = chances(difference, found.errors, documents)
    compared = both[_KEY].assign(
        first=both["value_first"],
        second=both["value_second"],
        difference=difference,
        error=found.errors,
        low=found.low,
        high=found.high,
        chance=chance,
        marked=benjamini_hochberg(chance),
        tokens=both[["tokens_first", "tokens_second"]].min(axis=1),
        documents=documents,
    )
    known = np.where(found.errors > 0, found.errors, np.nan)
    order = np.argsort(-np.abs(difference) / known, kind="stable")  # NaN comes last
    return compared.iloc[order].reset_index(drop=True)


def _with_rare(found: Estimates, both: pd.DataFrame, documents: np.ndarray) -> Estimates:
    """The same, with wider errors where a share of either result has few tokens of one decision."""
    few = np.zeros(len(both), dtype=np.bool_)
    for side in ("first", "second"):
        tokens = both[f"tokens_{side}"].to_numpy()
        few |= few_outcomes((both[f"value_{side}"] * tokens).round().to_numpy(), tokens)
    few &= (both["measure"] == "share").to_numpy()
    added = np.hypot(both["error_first"].to_numpy(), both["error_second"].to_numpy())
    errors = np.where(few, np.fmax(added, found.errors), found.errors)
    half = errors * quantiles(documents)
    low, high = (np.where(few, found.values + sign * half, end) for sign, end in ((-1, found.low), (1, found.high)))
    return Estimates(found.values, low, high, errors)


def _deviations(column: pd.Series, size: int) -> np.ndarray:
    """(rows, R) deviations of the resamples; NaN where a number has none."""
    nothing = np.full(size, np.nan)
    rows = [nothing if each is None else np.asarray(each, dtype=np.float64)[:size] for each in column]
    return np.stack(rows) if rows else np.zeros((0, size))
