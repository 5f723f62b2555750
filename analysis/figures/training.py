"""Plotly figures of training runs."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ..trace.token_classes import KINDS
from ..training.run import RoutingHistory, Run
from .style import DROPPED, FROM_ZERO, KEPT, LAYOUT, NEUTRAL, line, marker
from .words import ENGLISH, Words

_SMOOTHED = 15  # lines of the log
_MOST_IN_LEGEND = 12  # levels
_LAYOUT = LAYOUT | {
    "height": 380,
    "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0, "tracegroupgap": 0},
}


def loss_curves(runs: Mapping[str, Run], words: Words = ENGLISH) -> go.Figure:
    """Loss over trained tokens of runs by name: a running mean for training, points for held-out text.

    The axis has no unit where there is a conversion, whose loss in training has none.
    """
    figure = go.Figure()
    for number, (name, run) in enumerate(runs.items()):
        per_step = run.config["batch_size"] * run.config["length"]
        steps = run.log.dropna(subset="loss")
        figure.add_scatter(
            x=steps["step"] * per_step,
            y=steps["loss"].rolling(_SMOOTHED, min_periods=1).mean(),
            name=escape(name),
            legendgroup=name,
            line=line(number),
            hovertemplate="%{x:,}: %{y:.3f}<extra></extra>",
        )
        held_out = run.log.dropna(subset="eval_loss")
        figure.add_scatter(
            x=held_out["step"] * per_step,
            y=held_out["eval_loss"],
            legendgroup=name,
            showlegend=False,  # one entry a run: more push the plot together
            mode="markers",
            marker=marker(number, 9),
            hovertemplate=f"%{{x:,}}: %{{y:.3f}}, {words['figure_held_out']}<extra></extra>",
        )
    converted = any(run.config.get("converted") for run in runs.values())
    title = words["figure_loss_converted" if converted else "figure_loss"]
    figure.update_layout(**_LAYOUT, xaxis_title=words["figure_trained_tokens"], yaxis_title=title)
    return figure


def speed_curves(runs: Mapping[str, Run], words: Words = ENGLISH) -> go.Figure:
    """Tokens per second over the steps of runs by name."""
    logs = {name: run.log.dropna(subset="tokens_per_second") for name, run in runs.items()}
    series = {name: (log["step"].to_numpy(), log["tokens_per_second"].to_numpy()) for name, log in logs.items()}
    return _lines(series, words["figure_tokens_per_second"], words)


def work_curves(runs: Mapping[str, Run], histories: Mapping[str, RoutingHistory], words: Words = ENGLISH) -> go.Figure:
    """Share of the dense model's work over trained tokens, of runs by name that recorded their routing."""
    return _shares(runs, histories, lambda history: history.work, words["figure_work"], words)


def kept_curves(runs: Mapping[str, Run], histories: Mapping[str, RoutingHistory], words: Words = ENGLISH) -> go.Figure:
    """Share kept of the tokens that reach a router, mean of the levels, over trained tokens, of runs by name."""
    return _shares(
        runs, histories, lambda history: _mean_of_levels(history.retention), words["figure_kept_mean"], words
    )


def level_curves(
    history: RoutingHistory,
    values: np.ndarray,
    names: Sequence[str],
    title: str,
    nominal: Sequence[float] = (),
    words: Words = ENGLISH,
) -> go.Figure:
    """One number (K, S) of every level over the steps; `nominal` are its targets, drawn as thin lines.

    Many levels have no legend, which would take the figure's room: a line says its name under the pointer.
    """
    figure = _lines({name: (history.steps, values[:, n]) for n, name in enumerate(names)}, title, words)
    figure.update_yaxes(**FROM_ZERO)
    if len(names) > _MOST_IN_LEGEND:  # such as the three of every light/heavy block
        figure.update_layout(showlegend=False)
    for value in sorted(set(nominal)):
        figure.add_hline(
            value,
            line={"color": NEUTRAL, "width": 1},
            annotation_text=f"{words['figure_nominal']} {value:g}",
            annotation_position="top left",
        )
    return figure


def kind_curves(history: RoutingHistory, level: int, words: Words = ENGLISH) -> go.Figure:
    """Share kept of the tokens of every kind that reach a level, over the steps."""
    series = {
        words[f"figure_kind_{kind}"]: (history.steps, history.by_kind[:, level - 1, n])
        for n, kind in enumerate(KINDS)
        if not np.isnan(history.by_kind[:, level - 1, n]).all()
    }
    figure = _lines(series, words["figure_kept_share"], words)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    return figure


def quantile_bands(
    steps: np.ndarray, quantiles: np.ndarray, title: str, marked: np.ndarray | None = None, words: Words = ENGLISH
) -> go.Figure:
    """Median of a number over the steps, and the bands that hold half and nine tenths of its values.

    Args:
        steps: (K,) training steps.
        quantiles: (K, 5) quantiles at `analysis.training.run.QUANTILES`.
        title: title of the axis.
        marked: (K,) values to mark; NaN where there are none.
        words: labels by key.
    """
    figure = go.Figure()
    for low, high, opacity, name in ((0, 4, 0.15, "figure_most"), (1, 3, 0.3, "figure_half")):
        figure.add_scatter(
            x=np.concatenate([steps, steps[::-1]]),
            y=np.concatenate([quantiles[:, low], quantiles[::-1, high]]),
            fill="toself",
            fillcolor=f"rgba(47, 111, 179, {opacity})",
            line={"width": 0},
            name=words[name],
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=steps,
        y=quantiles[:, 2],
        name=words["figure_median"],
        mode="lines+markers",
        line={"color": KEPT},
        hovertemplate="%{x:,}: %{y:.3f}<extra></extra>",
    )
    if marked is not None and not np.isnan(marked).all():
        figure.add_scatter(
            x=steps,
            y=marked,
            name=words["figure_threshold"],
            mode="lines",
            line={"color": DROPPED, "dash": "dash"},
            hovertemplate="%{x:,}: %{y:.3f}<extra></extra>",
        )
    figure.update_layout(**_LAYOUT, xaxis_title=words["figure_step"], yaxis_title=title)
    return figure


def _mean_of_levels(values: np.ndarray) -> np.ndarray:
    """(K,) means of (K, S) over the levels that have a value; NaN where none has."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _shares(
    runs: Mapping[str, Run],
    histories: Mapping[str, RoutingHistory],
    values: Callable[[RoutingHistory], np.ndarray],
    title: str,
    words: Words,
) -> go.Figure:
    series = {}
    for name, history in histories.items():
        per_step = runs[name].config["batch_size"] * runs[name].config["length"]
        series[name] = (history.steps * per_step, values(history))
    figure = _lines(series, title, words)
    figure.update_layout(xaxis_title=words["figure_trained_tokens"])
    figure.update_yaxes(tickformat=".2~%", **FROM_ZERO)
    return figure


def _lines(series: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, words: Words) -> go.Figure:
    figure = go.Figure()
    for number, (name, (x, y)) in enumerate(series.items()):
        figure.add_scatter(
            x=x,
            y=y,
            name=escape(name),
            mode="lines+markers",
            line=line(number),
            marker=marker(number, 6),
            hovertemplate="%{x:,}: %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**_LAYOUT, xaxis_title=words["figure_step"], yaxis_title=title)
    return figure
