"""Plotly figures of time and memory, measured and predicted; the two are never in one figure."""

from collections.abc import Sequence

import plotly.graph_objects as go

from subllm import SubllmConfig
from subllm.structure import BLOCK

from .efficiency import Comparison
from .figures import DROPPED, ENGLISH, KEPT, LAYOUT, NEUTRAL, Words
from .roofline import PHASES, Hardware, dense, phase_work, speedup

_DASHES = {"prefill": "solid", "decode": "dash", "training": "dot"}
_PATTERNS = ("", "/", "x", ".", "\\", "+")


def measured_speedup(rows: Sequence[Comparison], words: Words = ENGLISH) -> go.Figure:
    """Dense time over SUBLLM time, reading and per new token, with the limit that counting operations gives.

    Args:
        rows: one per prompt length.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    lengths = [f"{row.tokens:,}" for row in rows]
    for name, values, colour, pattern in (
        (words["figure_prefill"], [row.ratio("dense", "subllm") for row in rows], KEPT, ""),
        (words["figure_decode"], [row.ratio("dense decode", "subllm decode") for row in rows], DROPPED, "/"),
    ):
        marker = {"color": colour, "pattern": {"shape": pattern}}
        texts = [f"{value:.2f}×" for value in values]
        figure.add_bar(x=lengths, y=values, name=name, marker=marker, text=texts, hoverinfo="skip")
    figure.add_scatter(
        x=lengths,
        y=[row.prefill_limit for row in rows],
        mode="markers",
        name=words["figure_limit"],
        marker={"symbol": "line-ew-open", "size": 40, "color": NEUTRAL, "line": {"width": 3}},
        hovertemplate="%{y:.2f}×<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(
        **LAYOUT, barmode="group", xaxis_title=words["figure_tokens"], yaxis_title=words["figure_speedup"]
    )
    figure.update_xaxes(type="category")
    return figure


def measured_memory(rows: Sequence[Comparison], words: Words = ENGLISH) -> go.Figure:
    """Cache and peak memory of both models.

    Args:
        rows: one per prompt length.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    lengths = [f"{row.tokens:,}" for row in rows]
    for name, pairs, pattern in (
        (words["figure_cache"], [row.cache_bytes for row in rows], ""),
        (words["figure_peak"], [row.peak_bytes for row in rows], "/"),
    ):
        for index, (who, colour) in enumerate((("SUBLLM", KEPT), (words["figure_dense"], NEUTRAL))):
            figure.add_bar(
                x=lengths,
                y=[pair[index] / 2**20 for pair in pairs],
                name=f"{name}, {who}",
                marker={"color": colour, "pattern": {"shape": pattern}},
                hovertemplate="%{y:,.1f} MiB<extra></extra>",
            )
    figure.update_layout(**LAYOUT, barmode="group", xaxis_title=words["figure_tokens"], yaxis_title="MiB")
    figure.update_xaxes(type="category")
    return figure


def measured_steps(row: Comparison, words: Words = ENGLISH) -> go.Figure:
    """Where the time of reading one prompt went: every block, and entering and leaving levels.

    Args:
        row: of one prompt length.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    blocks = [1000 * t for symbol, t in zip(row.structure, row.step_seconds, strict=False) if symbol == BLOCK]
    at = [row.structure[:i].count(BLOCK) for i, symbol in enumerate(row.structure) if symbol != BLOCK]
    routing = [1000 * t for symbol, t in zip(row.structure, row.step_seconds, strict=False) if symbol != BLOCK]
    for name, x, y, colour, pattern in (
        (words["figure_block"], list(range(len(blocks))), blocks, KEPT, ""),
        (words["figure_routing"], [n - 0.5 for n in at], routing, DROPPED, "/"),
    ):
        figure.add_bar(
            x=x,
            y=y,
            width=0.8 if colour == KEPT else 0.3,
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{x}: %{y:,.2f} ms<extra></extra>",
        )
    figure.update_layout(
        **LAYOUT, barmode="overlay", xaxis_title=words["figure_block"], yaxis_title=words["figure_milliseconds"]
    )
    return figure


def predicted_speedup(
    config: SubllmConfig, hardware: Hardware, dtype: str, lengths: Sequence[int], batch: int, words: Words = ENGLISH
) -> go.Figure:
    """Dense time over SUBLLM time by context length, for every phase, at nominal retention.

    Args:
        config: of the model.
        hardware: assumed.
        dtype: of the computation.
        lengths: of the context, in tokens.
        batch: sequences.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    for phase in PHASES:
        figure.add_scatter(
            x=list(lengths),
            y=[speedup(config, hardware, phase, n, batch, dtype) for n in lengths],
            mode="lines+markers",
            name=words[f"figure_{phase}"],
            line={"color": KEPT, "dash": _DASHES[phase]},
            hovertemplate="%{x:,}: %{y:.2f}×<extra></extra>",
        )
    figure.add_hline(y=1, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_tokens"], yaxis_title=words["figure_speedup"])
    figure.update_xaxes(type="log")
    return figure


def module_times(
    config: SubllmConfig, hardware: Hardware, dtype: str, tokens: int, batch: int, words: Words = ENGLISH
) -> go.Figure:
    """Where the time of reading a prompt goes, by module, SUBLLM and dense.

    Args:
        config: of the model.
        hardware: assumed.
        dtype: of the computation.
        tokens: of the prompt.
        batch: sequences.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    names = ["SUBLLM", words["figure_dense"]]
    works = [phase_work(each, "prefill", tokens, batch, dtype) for each in (config, dense(config))]
    modules = list(dict.fromkeys(part.module for part in works[0]))
    for module, pattern in zip(modules, _PATTERNS, strict=False):
        times = [1000 * hardware.seconds([p for p in work if p.module == module], dtype) for work in works]
        figure.add_bar(
            x=times,
            y=names,
            orientation="h",
            name=words[f"figure_{module}"],
            marker={"pattern": {"shape": pattern}},
            hovertemplate="%{x:,.3f} ms<extra>" + words[f"figure_{module}"] + "</extra>",
        )
    figure.update_layout(**(LAYOUT | {"height": 240}), barmode="stack", xaxis_title=words["figure_milliseconds"])
    return figure
