"""What a run cost and how good it was, next to the dense model; every number is of the run in front of the user."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import streamlit as st

from analysis import Cost, Trace, figures
from analysis.operations import lens_operations, prefill_operations
from app.messages import plain
from app.runs import Source
from app.strings import language, say
from app.strings import table as words
from subllm.checkpoints import read_config


def headline(trace: Trace) -> None:
    """The numbers that matter first, in one row.

    Args:
        trace: of a prompt.
    """
    cells = [(say("prompt_tokens"), f"{trace.num_tokens:,}", "", say("tokens_help"))]
    for span in range(trace.num_spans):
        level = figures.level_name(trace, span, words(language()))
        share = "–" if np.isnan(trace.retention[span]) else f"{trace.retention[span]:.0%}"
        cells.append(
            (
                say("keeps", level=level),
                share,
                say("nominal_share", share=f"{trace.retention_ratios[span]:.0%}"),
                say("keeps_help"),
            )
        )
    work = trace.block_tokens.sum() / max(trace.num_blocks * trace.num_tokens, 1)
    cells.append((say("work"), f"{work:.0%}", say("of_dense"), say("work_help")))
    if trace.cost and trace.dense_cost:
        speed = trace.dense_cost.median_seconds / trace.cost.median_seconds
        cells.append((say("reading"), f"{speed:.2f}×", say("dense_speed"), say("reading_help")))
    for column, (label, value, note, explained) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(label, value, note or None, delta_color="off", delta_arrow="off", help=explained)


def table(trace: Trace) -> None:
    """Time, memory and agreement of both models, with how they were measured.

    Args:
        trace: of a prompt.
    """
    ours, dense = trace.cost, trace.dense_cost
    if ours is None or dense is None:
        st.info(say("not_measured"))
        return
    kinds: list[tuple[str, Callable[[Cost], float]]] = [
        ("cost_time", lambda cost: 1000 * cost.median_seconds),
        ("cost_peak", lambda cost: cost.peak_bytes / 2**20),
        ("cost_cache", lambda cost: cost.cache_bytes / 2**20),
    ]
    rows = [(say(name), value(ours), value(dense)) for name, value in kinds]
    if not np.isnan(trace.perplexity):
        rows.append((say("cost_perplexity"), trace.perplexity, trace.dense_perplexity))
    columns = {
        "SUBLLM": [f"{value:,.2f}" for _, value, _ in rows],
        say("dense"): [f"{value:,.2f}" for _, _, value in rows],
        f"SUBLLM / {say('dense')}": [f"{ours / dense:.2f}" for _, ours, dense in rows],
    }
    st.table(pd.DataFrame(columns, index=[name for name, _, _ in rows]))
    if not np.isnan(trace.divergence).all():
        share, divergence = f"{trace.agrees.mean():.0%}", f"{np.nanmean(trace.divergence):.2f}"
        st.caption(say("agreement", share=share, kl=divergence))
    spread = ", ".join(
        f"{name} {1000 * min(cost.seconds):,.1f} – {1000 * max(cost.seconds):,.1f} ms"
        for name, cost in (("SUBLLM", ours), (say("dense"), dense))
    )
    where = trace.provenance
    st.caption(
        plain(
            say(
                "measured",
                device=where.device,
                dtype=where.dtype,
                attention=where.attention,
                n=len(ours.seconds),
                spread=spread,
                dense=say(f"dense_{where.dense}"),
                versions=where.versions,
            )
        )
    )


def lens_cost(trace: Trace, source: Source) -> float:
    """Work of reading off every token after every block, over that of reading the prompt, both counted.

    Args:
        trace: of a prompt.
        source: of the trace.
    """
    config = read_config(source.folder)
    tokens = trace.block_tokens.tolist()
    return lens_operations(config, tokens) / prefill_operations(config, tokens)
