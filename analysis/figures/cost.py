"""Plotly figures of time and memory, measured and predicted; the two are never in one figure."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from subllm import SubllmConfig
from subllm.structure import CLOSE, OPEN

from ..cost.comparison import Comparison
from ..cost.roofline import PHASES, Scenario, phase_work, speedup
from ..cost.sizes import cache_bytes, level_tokens, without_levels
from .style import DROPPED, KEPT, LAYOUT, NEUTRAL
from .words import ENGLISH, Words

_DASHES = {"prefill": "solid", "decode": "dash", "training": "dot"}
_PATTERNS = ("", "/", "x", ".", "\\", "+", "-")


def measured_speedup(rows: Sequence[Comparison], words: Words = ENGLISH) -> go.Figure:
    """Dense time over the checkpoint's, of prefill and decode, with the counted limit; a row per setting."""
    figure = go.Figure()
    lengths = [row.setting.words for row in rows]
    for name, values, colour, pattern, place in (  # a number on a pattern could not be read
        (words["figure_prefill"], [row.ratio("dense", "subllm") for row in rows], KEPT, "", "inside"),
        (words["figure_decode"], [row.ratio("dense decode", "subllm decode") for row in rows], DROPPED, "/", "outside"),
    ):
        figure.add_bar(
            x=lengths,
            y=values,
            name=name,
            offsetgroup=colour,
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[f"{value:.2f}×" for value in values],
            textposition=place,
            textangle=0,
            insidetextanchor="middle",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=lengths,
        y=[row.prefill_limit for row in rows],
        mode="markers",
        name=words["figure_limit"],
        offsetgroup=KEPT,
        marker={"symbol": "line-ew-open", "size": 24, "color": NEUTRAL, "line": {"width": 3}},
        hovertemplate="%{y:.2f}×<extra></extra>",
    )
    figure.add_hline(y=1, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(
        **LAYOUT,
        barmode="group",
        scattermode="group",
        uniformtext={"minsize": 10, "mode": "hide"},  # in a narrow window; the table above has them, too
        xaxis_title=words["figure_tokens"],
        yaxis_title=words["figure_speedup"],
    )
    figure.update_xaxes(type="category")
    return figure


def measured_memory(rows: Sequence[Comparison], words: Words = ENGLISH) -> go.Figure:
    """Cache and peak memory of both models; a row per setting."""
    figure = go.Figure()
    lengths = [row.setting.words for row in rows]
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
    """Prefill time of one setting by step: every block, and entering and leaving levels."""
    figure = go.Figure()
    blocks: list[float] = []
    routing: list[float] = []
    at: list[int] = []
    for symbol, seconds in zip(row.structure, row.step_seconds, strict=False):
        if symbol in (OPEN, CLOSE):
            at.append(len(blocks))
            routing.append(1000 * seconds)
        else:
            blocks.append(1000 * seconds)
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


def measured_modules(row: Comparison, words: Words = ENGLISH) -> go.Figure:
    """Prefill time of one setting by kind of module, as one bar."""
    figure = go.Figure()
    total = sum(row.module_seconds.values())
    for (module, seconds), pattern in zip(row.module_seconds.items(), _PATTERNS * 2, strict=False):
        if module == "bypass" and not seconds:  # no level has one
            continue
        name = words[f"figure_{module}"]
        figure.add_bar(
            x=[1000 * seconds],
            y=["SUBLLM"],
            width=0.5,
            orientation="h",
            name=f"{name} {seconds / total:.1%}",
            marker={"pattern": {"shape": pattern}},
            hovertemplate="%{x:,.2f} ms<extra>" + name + "</extra>",
        )
    layout = LAYOUT | {"height": 340}  # in a narrow window, the legend has a line for each part
    figure.update_layout(**layout, barmode="stack", xaxis_title=words["figure_milliseconds"])
    figure.update_yaxes(visible=False)
    return figure


def cache_growth(row: Comparison, words: Words = ENGLISH) -> go.Figure:
    """Size of keys and values after every new token, SUBLLM and dense."""
    figure = go.Figure()
    starts = row.cache_bytes
    for index, (name, colour, dash) in enumerate((("SUBLLM", KEPT, "solid"), (words["figure_dense"], NEUTRAL, "dash"))):
        sizes = [starts[index], *(pair[index] for pair in row.growth)]
        figure.add_scatter(
            x=list(range(len(sizes))),
            y=[size / 2**20 for size in sizes],
            mode="lines",
            name=name,
            line={"color": colour, "dash": dash, "shape": "hv"},
            hovertemplate="%{x}: %{y:,.3f} MiB<extra></extra>",
        )
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_new_tokens"], yaxis_title="MiB")
    return figure


def measured_break_even(rows: Sequence[Comparison]) -> int | None:
    """Prompt length from which on reading is no slower than with the dense model, between lengths that were measured.

    Args:
        rows: of prompts that differ in length only.

    Returns:
        Tokens, between two lengths on a straight line over their logarithms; 0 if no length was slower; None if the
        longest was.
    """
    ordered = sorted(rows, key=lambda row: row.tokens)
    ratios = [row.ratio("dense", "subllm") for row in ordered]
    slower = [index for index, ratio in enumerate(ratios) if ratio < 1]
    if not slower:
        return 0
    last = slower[-1]
    if last == len(ordered) - 1:
        return None
    share = (1 - ratios[last]) / (ratios[last + 1] - ratios[last])
    low, high = (math.log(ordered[index].tokens) for index in (last, last + 1))
    return round(math.exp(low + share * (high - low)))


def predicted_cache(
    config: SubllmConfig, scenario: Scenario, lengths: Sequence[int], words: Words = ENGLISH
) -> go.Figure:
    """Size of keys and values by context length, with the memory of the hardware."""
    figure = go.Figure()
    for each, name, colour, dash in (
        (config, "SUBLLM", KEPT, "solid"),
        (without_levels(config), words["figure_dense"], NEUTRAL, "dash"),
    ):
        figure.add_scatter(
            x=list(lengths),
            y=[cache_bytes(each, level_tokens(each, n), scenario.batch, scenario.dtype) / 2**30 for n in lengths],
            mode="lines+markers",
            name=name,
            line={"color": colour, "dash": dash},
            hovertemplate="%{x:,}: %{y:,.3f} GiB<extra></extra>",
        )
    figure.add_hline(y=scenario.hardware.memory / 2**30, line={"color": DROPPED, "dash": "dot"})
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_tokens"], yaxis_title="GiB")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def predicted_speedup(
    config: SubllmConfig,
    scenario: Scenario,
    lengths: Sequence[int],
    pays: Mapping[str, int | None],
    words: Words = ENGLISH,
) -> go.Figure:
    """Dense time over the checkpoint's by context length, for every phase, at nominal retention.

    Args:
        config: of the SUBLLM.
        scenario: machine and load.
        lengths: contexts, in tokens.
        pays: context from which the SUBLLM is at least as fast, by phase, as from `break_even`.
        words: all labels on screen.
    """
    figure, dense = go.Figure(), without_levels(config)
    for phase in PHASES:
        figure.add_scatter(
            x=list(lengths),
            y=[speedup(config, phase, scenario.at(n), dense) for n in lengths],
            mode="lines+markers",
            name=words[f"figure_{phase}"],
            line={"color": KEPT, "dash": _DASHES[phase]},
            hovertemplate="%{x:,}: %{y:.2f}×<extra></extra>",
        )
        even = pays[phase]
        if even is not None and even > lengths[0]:
            figure.add_vline(x=even, line={"color": DROPPED, "dash": _DASHES[phase]})
    figure.add_hline(y=1, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_tokens"], yaxis_title=words["figure_speedup"])
    figure.update_xaxes(type="log")
    return figure


def module_times(config: SubllmConfig, scenario: Scenario, words: Words = ENGLISH) -> go.Figure:
    """Predicted prefill time by module, SUBLLM and dense, and the time in which the device waits for launches."""
    figure = go.Figure()
    names = ["SUBLLM", words["figure_dense"]]
    hardware, dtype = scenario.hardware, scenario.dtype
    both = (config, without_levels(config))
    works = [phase_work(each, "prefill", scenario.tokens, scenario.batch, dtype) for each in both]
    times = {
        module: [hardware.working([p for p in work if p.module == module], dtype) for work in works]
        for module in dict.fromkeys(part.module for part in works[0])
    }
    times["launching"] = [hardware.seconds(work, dtype) - hardware.working(work, dtype) for work in works]
    for (module, seconds), pattern in zip(times.items(), _PATTERNS, strict=False):
        figure.add_bar(
            x=[1000 * each for each in seconds],
            y=names,
            orientation="h",
            name=words[f"figure_{module}"],
            marker={"pattern": {"shape": pattern}},
            hovertemplate="%{x:,.3f} ms<extra>" + words[f"figure_{module}"] + "</extra>",
        )
    figure.update_layout(**LAYOUT, barmode="stack", xaxis_title=words["figure_milliseconds"])
    return figure
