"""Plotly figures of interventions, attributions, stepwise generation and pairs of traces."""

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ..debug.attribution import Attribution
from ..debug.conductance import Conductance
from ..debug.generation import NewToken
from ..trace.pairs import Pairing
from ..trace.trace import Trace
from .quoted import quoted
from .style import DROPPED, FROM_ZERO, KEPT, LAYOUT, NEUTRAL
from .terms import level_name, level_words
from .words import ENGLISH, Words

_LONGEST = 24  # characters of a token in a label
_SHOWN = 20  # bars
_FEW_TOKENS = 20  # so few that each has its own tick
_MARKS = [(KEPT, "circle"), (DROPPED, "x"), (NEUTRAL, "diamond")]


def two_distributions(pieces: np.ndarray, probabilities: np.ndarray, words: Words = ENGLISH) -> go.Figure:
    """Next-token probabilities (2, K) without and with edits, for tokens with these texts (K,)."""
    return distributions(pieces, probabilities, (words["figure_untouched"], words["figure_edited"]), words)


def distributions(
    pieces: np.ndarray, probabilities: np.ndarray, names: Sequence[str], words: Words = ENGLISH
) -> go.Figure:
    """Next-token probabilities (N, K) of up to three runs with these names (N,), for tokens with these texts (K,)."""
    figure = go.Figure()
    for row, name, colour, pattern in zip(probabilities, names, (NEUTRAL, KEPT, DROPPED), ("/", "", "x"), strict=False):
        figure.add_bar(
            y=_labels(pieces),
            x=row,
            orientation="h",
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{x:.3%}<extra></extra>",
        )
    height = max(320, 120 + 10 * probabilities.size)
    figure.update_layout(**(LAYOUT | {"height": height}), barmode="group", xaxis_title=words["figure_probability"])
    figure.update_xaxes(tickformat=".2~%", **FROM_ZERO)
    figure.update_yaxes(autorange="reversed")
    return figure


def by_position(trace: Trace, values: np.ndarray, title: str) -> go.Figure:
    """One number for every token of the prompt, values (T,); the title is that of their axis."""
    figure = go.Figure()
    figure.add_scatter(
        x=np.arange(trace.num_tokens),
        y=values,
        mode="lines+markers",
        marker={"size": 4},
        line={"color": KEPT},
        text=_labels(trace.prompt.pieces, numbered=False),
        hovertemplate="%{x}: %{text}<br>%{y:.4f}<extra></extra>",
    )
    figure.update_layout(**LAYOUT, xaxis_title="", yaxis_title=title)
    figure.update_yaxes(**FROM_ZERO)
    return figure


def contributions(trace: Trace, found: Attribution, words: Words = ENGLISH) -> go.Figure:
    """The strongest contributions of an attribution, as signed bars."""
    strongest = np.argsort(-np.abs(found.values))[: min(_SHOWN, max(np.count_nonzero(found.values), 1))]
    texts = ["".join(trace.prompt.pieces[found.groups == feature]) for feature in strongest]
    first = [int(np.flatnonzero(found.groups == feature)[0]) for feature in strongest]
    values = found.values[strongest]
    figure = go.Figure()
    figure.add_bar(
        y=[f"{at}: {_short(text)}" for at, text in zip(first, texts, strict=True)],
        x=values,
        orientation="h",
        marker={
            "color": [KEPT if value >= 0 else DROPPED for value in values],
            "pattern": {"shape": ["" if value >= 0 else "/" for value in values]},
        },
        hovertemplate="%{y}: %{x:+.4f}<extra></extra>",
    )
    figure.update_layout(**(LAYOUT | {"height": 120 + 22 * len(values)}), xaxis_title=words["figure_contribution"])
    figure.update_xaxes(**FROM_ZERO)
    figure.update_yaxes(autorange="reversed")
    return figure


def through_blocks(flow: Conductance, words: Words = ENGLISH) -> go.Figure:
    """Conductance of every block."""
    figure = go.Figure()
    figure.add_bar(
        x=np.arange(len(flow.blocks)),
        y=flow.blocks,
        marker={"color": KEPT},
        hovertemplate="%{x}: %{y:+.4f}<extra></extra>",
    )
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_block"], yaxis_title=words["figure_contribution"])
    figure.update_yaxes(**FROM_ZERO)
    return figure


def past_level(trace: Trace, flow: Conductance, level: int, words: Words = ENGLISH) -> go.Figure:
    """Conductance past a level at the tokens where it is highest: unchanged stream, and what the level added."""
    carried, added = flow.carried[level - 1], flow.added[level - 1]
    strength = np.abs(carried) + np.abs(added)
    strongest = np.argsort(-strength)[: min(_SHOWN, max(np.count_nonzero(strength), 1))]
    kept = trace.routing.kept[level - 1, strongest]
    names = [f"{at}: {_short(str(trace.prompt.pieces[at]))}" for at in strongest]
    figure, words = go.Figure(), level_words(trace, level, words)
    for name, values, colour, pattern in (
        ("figure_unchanged_dropped", np.where(kept, 0, carried[strongest]), DROPPED, "/"),
        ("figure_unchanged_kept", np.where(kept, carried[strongest], 0), NEUTRAL, "."),
        ("figure_level_added", added[strongest], KEPT, ""),
    ):
        figure.add_bar(
            y=names,
            x=values,
            orientation="h",
            name=words[name],
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{y}: %{x:+.4f}<extra>" + words[name] + "</extra>",
        )
    figure.update_layout(
        **(LAYOUT | {"height": 140 + 22 * len(names)}), barmode="relative", xaxis_title=words["figure_contribution"]
    )
    figure.update_xaxes(**FROM_ZERO)
    figure.update_yaxes(autorange="reversed")
    return figure


def attention(trace: Trace, rows: np.ndarray, words: Words = ENGLISH) -> go.Figure:
    """Attention of one token in every block, rows (L, T); NaN where the block did not process the token."""
    seen = int(np.flatnonzero(np.nan_to_num(rows).any(0)).max(initial=0)) + 1
    figure = go.Figure()
    figure.add_heatmap(
        z=np.where(trace.routing.processed[:, :seen], rows[:, :seen], np.nan),
        text=np.tile(np.asarray(_labels(trace.prompt.pieces[:seen], numbered=False)), (len(rows), 1)),
        colorscale="Blues",
        hovertemplate="%{x}: %{text}<br>%{y}<br>%{z:.3f}<extra></extra>",
        colorbar={"tickformat": ".2~%"},
    )
    figure.update_layout(
        **(LAYOUT | {"height": 420}), xaxis_title=words["figure_tokens"], yaxis_title=words["figure_block"]
    )
    figure.update_yaxes(autorange="reversed", tickformat="d")
    figure.update_xaxes(dtick=1 if seen <= _FEW_TOKENS else None)
    return figure


def token_times(written: Sequence[NewToken], dense: Sequence[NewToken], words: Words = ENGLISH) -> go.Figure:
    """Time of every new token, by the number of blocks that processed it; `dense` is empty without a dense model."""
    figure = go.Figure()
    tokens = list(enumerate(written))
    counts = sorted({token.blocks for token in written}, reverse=True)
    for count, (colour, symbol) in zip(counts, _MARKS * len(counts), strict=False):
        chosen = [(number, token) for number, token in tokens if token.blocks == count]
        name = f"{words['figure_blocks']}: {count}"
        figure.add_scatter(
            x=[number for number, _ in chosen],
            y=[1000 * token.seconds for _, token in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol},
            hovertemplate="%{x}: %{y:.1f} ms<extra>" + name + "</extra>",
        )
    if dense:
        figure.add_scatter(
            y=[1000 * token.seconds for token in dense],
            mode="lines",
            name=words["figure_dense"],
            line={"color": NEUTRAL, "dash": "dash"},
            hovertemplate="%{x}: %{y:.1f} ms<extra></extra>",
        )
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_new_tokens"], yaxis_title=words["figure_milliseconds"])
    return figure


def level_growth(
    trace: Trace, written: Sequence[NewToken], dense: Sequence[NewToken], words: Words = ENGLISH
) -> go.Figure:
    """Cache of every level while a text grows after a trace's prompt; `dense` is empty without a dense model."""
    figure = go.Figure()
    sizes = np.asarray([token.level_bytes for token in written]) / 2**20
    for level in range(sizes.shape[1] if len(sizes) else 0):
        name = level_name(trace, level, words) if level else words["figure_outside"]
        figure.add_scatter(
            y=sizes[:, level],
            mode="lines",
            name=name,
            stackgroup="levels",
            hovertemplate="%{x}: %{y:.3f} MiB<extra></extra>",
        )
    if dense:
        figure.add_scatter(
            y=[sum(token.level_bytes) / 2**20 for token in dense],
            mode="lines",
            name=words["figure_dense"],
            line={"color": NEUTRAL, "dash": "dash"},
            hovertemplate="%{x}: %{y:.3f} MiB<extra></extra>",
        )
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_new_tokens"], yaxis_title="MiB")
    return figure


def score_pairs(first: Trace, second: Trace, pairing: Pairing, level: int, words: Words = ENGLISH) -> go.Figure:
    """Scores of paired tokens in two traces, by which of the traces keep them.

    Raises:
        AnalysisError: if the level's router does not score tokens in one of the traces.
    """
    x, y = first.routing.scores_of(level)[pairing.first], second.routing.scores_of(level)[pairing.second]
    a, b = first.routing.kept[level - 1, pairing.first], second.routing.kept[level - 1, pairing.second]
    texts = np.asarray(_labels(first.prompt.pieces[pairing.first], numbered=False))
    figure = go.Figure()
    for name, chosen, colour, symbol in (
        (words["figure_alike"], a == b, NEUTRAL, "circle"),
        (words["figure_first_only"], a & ~b, KEPT, "diamond"),
        (words["figure_second_only"], ~a & b, DROPPED, "x"),
    ):
        figure.add_scatter(
            x=x[chosen],
            y=y[chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 6},
            text=texts[chosen],
            hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    for line, trace in ((figure.add_vline, first), (figure.add_hline, second)):
        line(float(trace.routing.thresholds[level - 1]), line={"color": NEUTRAL, "dash": "dot"})
    figure.update_layout(**LAYOUT, xaxis_title=words["figure_score_first"], yaxis_title=words["figure_score_second"])
    return figure


def _labels(pieces: Sequence[str] | np.ndarray, *, numbered: bool = True) -> list[str]:
    """Texts of tokens as labels; numbered, so that equal texts stay apart."""
    short = [_short(str(piece)) for piece in pieces]
    return [f"{n + 1}. {text}" for n, text in enumerate(short)] if numbered else short


def _short(text: str) -> str:
    return escape(quoted(text[:_LONGEST] + "…" if len(text) > _LONGEST else text), quote=False)
