"""Cost and quality of a run compared with the dense model; every number is of the run on screen."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import streamlit as st

from analysis import Cost, Trace
from analysis.cost.operations import lens_operations, prefill_operations
from analysis.figures import trace as figures
from analysis.trace.parts import UNTOUCHED
from app.files import configuration
from app.messages import plain
from app.state import Run
from app.strings import language, say
from app.strings import table as words


def headline(trace: Trace) -> None:
    """The most important numbers, in one row."""
    routing = trace.routing
    cells = [(say("prompt_tokens"), f"{trace.num_tokens:,}", "", say("tokens_help"))]
    for level, kept, nominal in zip(routing.levels, routing.retention, routing.retention_ratios, strict=True):
        cells.append(
            (
                say("keeps", level=figures.level_name(trace, level, words(language()))),
                "–" if np.isnan(kept) else f"{kept:.0%}",
                say("nominal_share", share=f"{nominal:.0%}"),
                say("keeps_help"),
            )
        )
    cells.append((say("work"), f"{work(trace):.0%}", say("of_dense"), say("work_help")))
    if trace.costs is not None:
        speed = trace.costs.dense.median_seconds / trace.costs.subllm.median_seconds
        cells.append((say("reading"), f"{speed:.2f}×", say("dense_speed"), say("reading_help")))
    for column, (label, value, note, explained) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(label, value, note or None, delta_color="off", delta_arrow="off", help=explained)


def work(trace: Trace) -> float:
    """Number of (block, token) pairs that were computed, divided by that of the dense model."""
    return float(trace.routing.block_tokens.sum()) / max(trace.routing.num_blocks * trace.num_tokens, 1)


def table(trace: Trace) -> None:
    """Time, memory and agreement of the run and its reference, with how they were measured."""
    costs, agreement, likelihood = trace.costs, trace.agreement, trace.likelihood
    rows: list[tuple[str, float, float]] = []
    if costs is None:
        st.info(say("not_measured"))
    else:
        kinds: list[tuple[str, Callable[[Cost], float]]] = [
            ("cost_time", lambda cost: 1000 * cost.median_seconds),
            ("cost_peak", lambda cost: cost.peak_bytes / 2**20),
            ("cost_cache", lambda cost: cost.cache_bytes / 2**20),
        ]
        rows += [(say(name), value(costs.subllm), value(costs.dense)) for name, value in kinds]
    if likelihood is not None and agreement is not None and trace.num_tokens > 1:
        rows.append((say("cost_perplexity"), likelihood.perplexity, agreement.perplexity))
    if rows:
        untouched = agreement is not None and agreement.reference == UNTOUCHED
        names = (say("figure_edited"), say("figure_untouched")) if untouched else ("SUBLLM", say("dense"))
        columns = {
            names[0]: [f"{value:,.2f}" for _, value, _ in rows],
            names[1]: [f"{value:,.2f}" for _, _, value in rows],
            f"{names[0]} / {names[1]}": [f"{value / other:.2f}" for _, value, other in rows],
        }
        st.table(pd.DataFrame(columns, index=[name for name, _, _ in rows]))
    if agreement is not None:
        share, divergence = f"{agreement.agrees.mean():.0%}", f"{agreement.divergence.mean():.2f}"
        st.caption(say("agreement", share=share, kl=divergence))
    if costs is None:
        return
    spread = ", ".join(
        f"{name} {1000 * min(cost.seconds):,.1f} – {1000 * max(cost.seconds):,.1f} ms"
        for name, cost in (("SUBLLM", costs.subllm), (say("dense"), costs.dense))
    )
    where = trace.provenance
    st.caption(
        plain(
            say(
                "measured",
                device=where.device,
                dtype=where.dtype,
                attention=where.attention,
                n=len(costs.subllm.seconds),
                spread=spread,
                dense=say(f"dense_{where.dense}"),
                versions=where.versions,
            )
        )
    )


def lens_cost(run: Run) -> float:
    """Operations of predicting after every block for every token, divided by those of the prefill; both are counted."""
    config = configuration(run.recipe.model.folder)
    tokens = run.trace.routing.block_tokens.tolist()
    return lens_operations(config, tokens) / prefill_operations(config, tokens)
