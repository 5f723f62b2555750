"""Plotly figures of a trace. Each is a pure function; pages, notebooks and reports share them.

Text of tokens is escaped, since Plotly reads labels as a kind of HTML. Kept and dropped tokens differ in colour and in
the shape of their marker.
"""

from collections.abc import Mapping
from html import escape

import numpy as np
import plotly.graph_objects as go

from .trace import Trace

KEPT, DROPPED, NEUTRAL = "#2f6fb3", "#c2702f", "#8a8f98"
_LAYOUT = {
    "margin": {"l": 55, "r": 15, "t": 40, "b": 45},
    "height": 320,
    "legend": {"orientation": "h", "y": 1.14, "x": 0},
    "hovermode": "closest",
}


Words = Mapping[str, str]
ENGLISH: Words = {
    "level": "Level {n}",
    "level_inside": "Level {n} (inside level {parent})",
    "figure_kept": "kept",
    "figure_dropped": "dropped",
    "figure_threshold": "threshold",
    "figure_score": "importance score",
    "figure_count": "tokens per bin",
    "figure_position": "position in the prompt",
    "figure_selected": "selected",
    "figure_in_run": "kept in this run",
    "figure_nominal": "nominal",
    "figure_share": "share of the tokens that reach it",
    "figure_block": "block",
    "figure_processed": "tokens processed",
    "figure_dense": "dense",
}


def level_name(trace: Trace, span: int, words: Words = ENGLISH) -> str:
    """What a span is called on screen: "Level 1", with what it is inside of where that is not obvious.

    Args:
        trace: of a prompt.
        span: number of the span.
        words: labels by key, as in `ENGLISH`.
    """
    parent = int(trace.span_parents[span])
    nested = parent >= 0 and parent != span - 1
    return words["level_inside" if nested else "level"].format(n=span + 1, parent=parent + 1)


def score_histogram(trace: Trace, span: int, words: Words = ENGLISH) -> go.Figure:
    """Importance scores of the tokens that reached a span, kept and dropped, with the threshold.

    Args:
        trace: of a prompt.
        span: number of the span, in order of opening.
        words: labels by key, as in `ENGLISH`.
    """
    figure = go.Figure()
    edges = _edges(trace.scores[span][trace.present[span]])
    for name, mask, colour, pattern in (
        (words["figure_dropped"], trace.present[span] & ~trace.kept[span], DROPPED, "/"),
        (words["figure_kept"], trace.kept[span], KEPT, ""),
    ):
        counts, _ = np.histogram(trace.scores[span][mask], edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges),
            name=f"{name} ({int(mask.sum()):,})",
            marker={"color": colour, "pattern": {"shape": pattern}, "line": {"width": 0}},
            hovertemplate="%{x:.2f}: %{y}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "dash": "dash"}, annotation_text=words["figure_threshold"])
    figure.update_layout(
        **_LAYOUT, barmode="stack", bargap=0, xaxis_title=words["figure_score"], yaxis_title=words["figure_count"]
    )
    return figure


def score_by_position(trace: Trace, span: int, words: Words = ENGLISH, selected: int = -1) -> go.Figure:
    """Importance score of every token that reached a span against its position in the prompt.

    Args:
        trace: of a prompt.
        span: number of the span.
        words: labels by key, as in `ENGLISH`.
        selected: token to mark, or -1.
    """
    figure = _by_token(trace, span, trace.scores[span], words, selected)
    figure.add_hline(y=0, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(yaxis_title=words["figure_score"])
    return figure


def bypass_contribution(trace: Trace, span: int, words: Words = ENGLISH, selected: int = -1) -> go.Figure:
    """What a span added to each token through its bypass, relative to the stream before it; 0 for dropped tokens.

    Args:
        trace: of a prompt.
        span: number of the span.
        words: labels by key, as in `ENGLISH`.
        selected: token to mark, or -1.
    """
    share = trace.contribution_norm[span] / np.maximum(trace.stream_norm[span], 1e-12)
    figure = _by_token(trace, span, share, words, selected)
    figure.update_layout(yaxis_title="‖β ⊙ a (f(x) − x)‖ / ‖x‖")
    return figure


def retention(trace: Trace, words: Words = ENGLISH) -> go.Figure:
    """Actual against nominal share kept by each span."""
    names = [level_name(trace, span, words) for span in range(trace.num_spans)]
    figure = go.Figure()
    for label, values, colour, pattern in (
        (words["figure_in_run"], trace.retention, KEPT, ""),
        (words["figure_nominal"], trace.retention_ratios, NEUTRAL, "/"),
    ):
        figure.add_bar(
            x=names,
            y=values,
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[f"{value:.0%}" for value in values],
            textposition="outside",
            hovertemplate="%{x}: %{y:.1%}<extra></extra>",
        )
    figure.update_layout(**_LAYOUT, barmode="group", yaxis={"title": words["figure_share"]})
    figure.update_yaxes(tickformat=".0%", range=[0, 1.1])
    return figure


def tokens_per_block(trace: Trace, words: Words = ENGLISH) -> go.Figure:
    """How many tokens each block processed, with the number that a dense model processes."""
    figure = go.Figure()
    figure.add_bar(
        x=np.arange(trace.num_blocks),
        y=trace.block_tokens,
        name=words["figure_processed"],
        marker={"color": KEPT},
        hovertemplate=f"{words['figure_block']} %{{x}}: %{{y}}<extra></extra>",
    )
    figure.add_hline(y=trace.num_tokens, line={"color": NEUTRAL, "dash": "dash"}, annotation_text=words["figure_dense"])
    figure.update_layout(
        **_LAYOUT, showlegend=False, xaxis_title=words["figure_block"], yaxis_title=words["figure_processed"]
    )
    return figure


def _by_token(trace: Trace, span: int, values: np.ndarray, words: Words, selected: int) -> go.Figure:
    figure = go.Figure()
    for label, mask, colour, symbol in (
        (words["figure_dropped"], trace.present[span] & ~trace.kept[span], DROPPED, "x-thin-open"),
        (words["figure_kept"], trace.kept[span], KEPT, "circle"),
    ):
        positions = mask.nonzero()[0]
        figure.add_scattergl(
            x=positions,
            y=values[positions],
            mode="markers",
            name=label,
            marker={"color": colour, "symbol": symbol, "size": 7},
            text=[escape(repr(str(piece))) for piece in trace.pieces[positions]],
            hovertemplate="%{x} %{text}<br>%{y:.3f}<extra></extra>",
        )
    if selected >= 0 and trace.present[span, selected]:
        figure.add_scatter(
            x=[selected],
            y=[values[selected]],
            mode="markers",
            name=words["figure_selected"],
            marker={"symbol": "circle-open", "size": 15, "color": "#f2a900", "line": {"width": 3}},
            hoverinfo="skip",
        )
    figure.update_layout(**_LAYOUT, xaxis_title=words["figure_position"])
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    """Bin edges, one of them at the threshold, so that no bin holds kept and dropped tokens."""
    if not len(scores):
        return np.asarray([-1.0, 0.0, 1.0])
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 0.0)
    width = max((high - low) / 50, 1e-3)
    return np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
