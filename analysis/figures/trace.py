"""Plotly figures of a trace. Text of tokens is escaped, since Plotly reads labels as a kind of HTML."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from ..trace.statistics import run_lengths
from ..trace.trace import Trace
from .quoted import quoted
from .style import DROPPED, FROM_ZERO, KEPT, LAYOUT, MERGED, NEUTRAL, line
from .terms import level_name, level_words
from .words import ENGLISH, Words

if TYPE_CHECKING:
    from ..debug.lens import Lens


def score_histogram(trace: Trace, level: int, words: Words = ENGLISH) -> go.Figure:
    """Importance scores of the tokens that reached a level's router, kept and dropped, with the threshold.

    Raises:
        AnalysisError: if the level's router does not score tokens.
    """
    routing, scores = trace.routing, trace.routing.scores_of(level)
    threshold = float(routing.thresholds[level - 1])
    figure = _histogram(trace, level, scores, _edges(scores[routing.reached[level - 1]], threshold), words)
    label = f"{words['figure_threshold']} {threshold:.3g}"
    figure.add_vline(x=threshold, line={"color": NEUTRAL, "dash": "dash"}, annotation_text=label)
    figure.update_layout(xaxis_title=level_words(trace, level, words)["figure_score"])
    return figure


def bypass_contribution(trace: Trace, level: int, words: Words = ENGLISH) -> go.Figure:
    """Norm of what a level added to each token that reached its router, relative to the stream's; 0 where dropped."""
    figure = _shares(trace, level, trace.routing.contribution_share[level - 1], words)
    scale = "β ⊙ " if trace.routing.bypassed[level - 1] else ""
    figure.update_layout(xaxis_title=f"‖{scale}a (f(x) − x)‖ / ‖x‖")
    return figure


def processed_share(trace: Trace, level: int, words: Words = ENGLISH) -> go.Figure:
    """Share of the processed stream in a level's output, for the tokens that reached its router; 0 where dropped."""
    figure = _shares(trace, level, trace.routing.processed_share[level - 1], words)
    figure.update_layout(xaxis_title=level_words(trace, level, words)["figure_processed_share"])
    return figure


def kept_runs(trace: Trace, level: int, words: Words = ENGLISH) -> go.Figure:
    """Lengths of the unbroken runs of kept and of dropped tokens, among those that reached a level's router."""
    figure, words = go.Figure(), level_words(trace, level, words)
    runs, gaps = run_lengths(trace.routing, level)
    for name, lengths, colour, pattern in (
        (words["figure_runs"], runs, KEPT, ""),
        (words["figure_gaps"], gaps, DROPPED, "/"),
    ):
        values, counts = np.unique(lengths, return_counts=True)
        marker = {"color": colour, "pattern": {"shape": pattern}}
        figure.add_bar(x=values, y=counts, name=name, marker=marker, hovertemplate="%{x}: %{y}<extra></extra>")
    figure.update_layout(**LAYOUT, barmode="group", xaxis_title=words["figure_length"])
    return figure


def bypass_scales(trace: Trace, words: Words = ENGLISH) -> go.Figure:
    """The bypass scale β of every channel, sorted, one line per level that has a bypass."""
    figure = go.Figure()
    for level, scales in zip(trace.routing.levels, trace.routing.bypass_scale, strict=True):
        if not trace.routing.bypassed[level - 1]:
            continue
        name = level_name(trace, level, words)
        figure.add_scatter(y=np.sort(scales), mode="lines", name=name, line=line(level - 1))
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_channel"], yaxis_title="β")
    return figure


def lens(found: "Lens", pieces: np.ndarray, words: Words = ENGLISH) -> go.Figure:
    """The likeliest next token after each block, with its text from `pieces` (L + 1,), and the actual next token."""
    blocks = np.arange(len(found.ids)) - 1
    symbols = ["circle", *("circle" if on else "circle-open" for on in found.processed)]
    labels = [escape(quoted(str(piece))) for piece in pieces]
    figure = go.Figure()
    for name, values, colour in (
        (words["figure_best"], found.probabilities, KEPT),
        (words["figure_true"], found.target_probabilities, DROPPED),
    ):
        figure.add_scatter(
            x=blocks,
            y=values,
            mode="lines+markers",
            name=name,
            text=labels if colour == KEPT else [""] * len(labels),
            line={"color": colour, "dash": "solid" if colour == KEPT else "dot"},
            marker={"symbol": symbols, "size": 8},
            hovertemplate="%{x}: %{text} %{y:.3f}<extra></extra>"
            if colour == KEPT
            else "%{x}: %{y:.3f}<extra></extra>",
        )
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_after_block"], yaxis_title=words["figure_probability"])
    figure.update_yaxes(**FROM_ZERO)
    return figure


def contribution_histogram(trace: Trace, found: "Lens", words: Words = ENGLISH) -> go.Figure:
    """What each level added to one token, by channel; levels that added nothing are left out."""
    figure = go.Figure()
    for level, values in zip(trace.routing.levels, found.contributions, strict=True):
        if values.any() and not np.isnan(values).any():
            pattern = {"shape": ("", "/", "x", ".")[(level - 1) % 4]}
            name = level_name(trace, level, words)
            figure.add_histogram(
                x=values, name=name, opacity=0.65, nbinsx=60, marker={"color": KEPT, "pattern": pattern}
            )
    figure.update_layout(
        **LAYOUT, barmode="overlay", xaxis_title=words["figure_added"], yaxis_title=words["figure_channels"]
    )
    return figure


def tokens_per_block(trace: Trace, words: Words = ENGLISH) -> go.Figure:
    """Number of tokens that each block processed, with the number that a dense model processes."""
    figure = go.Figure()
    figure.add_bar(
        x=np.arange(trace.routing.num_blocks),
        y=trace.routing.block_tokens,
        name=words["figure_processed"],
        marker={"color": KEPT},
        hovertemplate=f"{words['figure_block']} %{{x}}: %{{y}}<extra></extra>",
    )
    figure.add_hline(y=trace.num_tokens, line={"color": NEUTRAL, "dash": "dash"}, annotation_text=words["figure_dense"])
    figure.update_layout(
        **LAYOUT, showlegend=False, xaxis_title=words["figure_block"], yaxis_title=words["figure_processed"]
    )
    return figure


def _shares(trace: Trace, level: int, values: np.ndarray, words: Words) -> go.Figure:
    """Histogram of numbers from 0 on, or from the lowest if some are negative."""
    reached = trace.routing.reached[level - 1]
    low, high = (float(limit(values, initial=0, where=reached)) for limit in (np.min, np.max))
    return _histogram(trace, level, values, np.linspace(low, high if high > low else low + 1, 41), words)


def _histogram(trace: Trace, level: int, values: np.ndarray, edges: np.ndarray, words: Words) -> go.Figure:
    """One number per token that reached a level's router: kept tokens apart from dropped or merged ones."""
    figure, words = go.Figure(), level_words(trace, level, words)
    routing, row = trace.routing, level - 1
    other = (MERGED, ".") if routing.merges[row] else (DROPPED, "/")
    for name, mask, colour, pattern in (
        (words["figure_kept"], routing.kept[row], KEPT, ""),
        (words["figure_dropped"], routing.reached[row] & ~routing.kept[row], *other),
    ):
        counts, _ = np.histogram(values[mask], edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges),
            name=f"{name} ({int(mask.sum()):,})",
            marker={"color": colour, "pattern": {"shape": pattern}, "line": {"width": 0}},
            hovertemplate="%{x:.2f}: %{y}<extra></extra>",
        )
    figure.update_layout(**LAYOUT, barmode="stack", bargap=0, yaxis_title=words["figure_count"])
    figure.update_yaxes(**FROM_ZERO)
    return figure


def _edges(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Bin edges, one of them at the threshold, so that no bin holds scores on both sides of it."""
    known = scores[np.isfinite(scores)].astype(np.float64) - threshold
    if not len(known):
        return threshold + np.asarray([-1.0, 0.0, 1.0])
    low, high = min(known.min(), 0.0), max(known.max(), 0.0)
    width = max((high - low) / 50, 1e-3)
    return threshold + np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
