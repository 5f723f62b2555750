"""Plotly figures of a trace. Each is a pure function; pages, notebooks and reports share them.

Text of tokens is escaped, since Plotly reads labels as a kind of HTML. Kept and dropped tokens differ in colour and in
the shape of their marker.
"""

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


def level_name(trace: Trace, span: int) -> str:
    """What a span is called on screen: "Level 1", with what it is inside of where that is not obvious."""
    parent = int(trace.span_parents[span])
    nested = parent >= 0 and parent != span - 1
    return f"Level {span + 1}" + (f" (inside level {parent + 1})" if nested else "")


def score_histogram(trace: Trace, span: int) -> go.Figure:
    """Importance scores of the tokens that reached a span, kept and dropped, with the threshold.

    Args:
        trace: of a prompt.
        span: number of the span, in order of opening.
    """
    figure = go.Figure()
    edges = _edges(trace.scores[span][trace.present[span]])
    for name, mask, colour, pattern in (
        ("dropped", trace.present[span] & ~trace.kept[span], DROPPED, "/"),
        ("kept", trace.kept[span], KEPT, ""),
    ):
        counts, _ = np.histogram(trace.scores[span][mask], edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges),
            name=f"{name} ({int(mask.sum()):,})",
            marker={"color": colour, "pattern": {"shape": pattern}, "line": {"width": 0}},
            hovertemplate="score %{x:.2f}: %{y} tokens<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "dash": "dash"}, annotation_text="threshold")
    figure.update_layout(
        **_LAYOUT, barmode="stack", bargap=0, xaxis_title="importance score", yaxis_title="tokens per bin"
    )
    return figure


def score_by_position(trace: Trace, span: int) -> go.Figure:
    """Importance score of every token that reached a span against its position in the prompt.

    Args:
        trace: of a prompt.
        span: number of the span.
    """
    figure = _by_token(trace, span, trace.scores[span], "score")
    figure.add_hline(y=0, line={"color": NEUTRAL, "dash": "dash"})
    figure.update_layout(yaxis_title="importance score")
    return figure


def bypass_contribution(trace: Trace, span: int) -> go.Figure:
    """What a span added to each token through its bypass, relative to the stream before it; 0 for dropped tokens.

    Args:
        trace: of a prompt.
        span: number of the span.
    """
    share = trace.contribution_norm[span] / np.maximum(trace.stream_norm[span], 1e-12)
    figure = _by_token(trace, span, share, "contribution")
    figure.update_layout(yaxis_title="‖β ⊙ a (f(x) − x)‖ / ‖x‖")
    return figure


def retention(trace: Trace) -> go.Figure:
    """Actual against nominal share kept by each span."""
    names = [level_name(trace, span) for span in range(trace.num_spans)]
    figure = go.Figure()
    for label, values, colour, pattern in (
        ("kept in this run", trace.retention, KEPT, ""),
        ("nominal", trace.retention_ratios, NEUTRAL, "/"),
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
    figure.update_layout(**_LAYOUT, barmode="group", yaxis={"title": "share of the tokens that reach it"})
    figure.update_yaxes(tickformat=".0%", range=[0, 1.1])
    return figure


def tokens_per_block(trace: Trace) -> go.Figure:
    """How many tokens each block processed, with the number that a dense model processes."""
    figure = go.Figure()
    figure.add_bar(
        x=np.arange(trace.num_blocks),
        y=trace.block_tokens,
        name="processed",
        marker={"color": KEPT},
        hovertemplate="block %{x}: %{y} tokens<extra></extra>",
    )
    figure.add_hline(y=trace.num_tokens, line={"color": NEUTRAL, "dash": "dash"}, annotation_text="dense")
    figure.update_layout(**_LAYOUT, showlegend=False, xaxis_title="block", yaxis_title="tokens processed")
    return figure


def _by_token(trace: Trace, span: int, values: np.ndarray, name: str) -> go.Figure:
    figure = go.Figure()
    for label, mask, colour, symbol in (
        ("dropped", trace.present[span] & ~trace.kept[span], DROPPED, "x-thin-open"),
        ("kept", trace.kept[span], KEPT, "circle"),
    ):
        positions = mask.nonzero()[0]
        figure.add_scattergl(
            x=positions,
            y=values[positions],
            mode="markers",
            name=label,
            marker={"color": colour, "symbol": symbol, "size": 7},
            text=[escape(repr(str(piece))) for piece in trace.pieces[positions]],
            hovertemplate=f"token %{{x}} %{{text}}<br>{name} %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(**_LAYOUT, xaxis_title="position in the prompt")
    return figure


def _edges(scores: np.ndarray) -> np.ndarray:
    """Bin edges, one of them at the threshold, so that no bin holds kept and dropped tokens."""
    if not len(scores):
        return np.asarray([-1.0, 0.0, 1.0])
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 0.0)
    width = max((high - low) / 50, 1e-3)
    return np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
