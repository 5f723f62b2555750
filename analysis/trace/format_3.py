"""Trace files of format 3, in which levels count from 0, decisions are missing, and NaN stands for "not measured"."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import TraceError
from .parts import (
    Agreement,
    Blocks,
    Continuation,
    Cost,
    Costs,
    Likelihood,
    Predictions,
    Prompt,
    Provenance,
    Routing,
)

FORMAT = 3
_EDITED = re.compile(  # what stands after the checkpoint's name
    r"\[(keep|drop|threshold|retention|bypass|dense)\b[^\]]*@[\d*]+\]$"
)


class RefusedError(TraceError):
    """An undamaged file that this version does not read."""


def parts_of(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parts of a trace by name, from a file's JSON object and arrays.

    Raises:
        RefusedError: if the run had edits, since the file does not say what they changed.
    """
    from subllm.routing.record import first_format  # noqa: PLC0415 - it needs torch, which the current format does not

    scores, kept = arrays["scores"], arrays["kept"]
    if _EDITED.search(meta["provenance"]["checkpoint"]) or ((np.nan_to_num(scores, nan=-1.0) > 0) != kept).any():
        raise RefusedError(
            "is a run with edits, of a version that did not record what they changed; make the run again."
        )
    recorded = first_format(scores, kept)
    measured = not np.isnan(arrays["divergence"]).all()
    new = arrays["new_scores"]
    new_kept = np.nan_to_num(new, nan=-1.0) > 0
    known = first_format(new, new_kept)
    confidence = arrays["confidence"]
    costs = [meta["cost"], meta["dense_cost"]]
    norms = {name: arrays[name] for name in ("bypass_scale", "stream_norm", "difference_norm", "contribution_norm")}
    return dict(
        prompt=Prompt(meta["prompt"], *(arrays[name] for name in ("token_ids", "starts", "ends", "pieces"))),
        routing=Routing(
            routers=np.full(len(kept), "subllm"),
            parents=arrays["span_parents"] + 1,
            retention_ratios=arrays["retention_ratios"],
            block_levels=arrays["block_spans"] + 1,
            kept=kept,
            edited=np.zeros_like(kept),
            scores=scores,
            **recorded,
            **norms,
        ),
        provenance=Provenance.from_json(meta["provenance"]),
        blocks=Blocks(arrays["change"], None if np.isnan(confidence).all() else confidence),
        predictions=Predictions(arrays["next_ids"], arrays["next_probabilities"], arrays["next_pieces"]),
        likelihood=Likelihood(arrays["surprisal"]) if measured else None,
        continuation=Continuation(
            meta["continuation"],
            arrays["new_ids"],
            arrays["new_pieces"],
            reached=known["reached"],
            kept=new_kept,
            weights=known["weights"],
            scores=new,
        )
        if len(arrays["new_ids"])
        else None,
        agreement=Agreement(
            meta["provenance"]["dense"], arrays["dense_surprisal"], arrays["divergence"], arrays["agrees"]
        )
        if measured
        else None,
        costs=Costs(*map(Cost.from_json, costs)) if all(costs) else None,
    )
