"""Figures of a corpus result, and the words for its groups and cells.

Every figure takes the table of all words on screen. Text of tokens is escaped, since Plotly reads labels as HTML.
"""

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go

from .quoted import quoted
from .style import DROPPED, KEPT, LAYOUT, NEUTRAL
from .words import Words

_NAMED = {  # where words for cells are said already
    "kind": "figure_kind_{cell}",
    "script": "script_{cell}",
    "segment": "turn_{cell}",
}


def group_name(group: str, words: Words) -> str:
    """What a group of cells is called.

    Args:
        group: its name in a summary.
        words: all labels on screen.
    """
    kind, _, rest = group.partition(" ")
    if kind == "fifth":
        return words["corpus_group_fifth"].format(variable=words[f"corpus_variable_{rest}"])
    return words[f"corpus_group_{kind}"]


def cell_name(group: str, cell: str, words: Words, types: Mapping[str, str] | None = None) -> str:
    """What a cell is called.

    Args:
        group: name of its group in a summary.
        cell: its name there.
        words: all labels on screen.
        types: text of token types by their ids.
    """
    kind = group.partition(" ")[0]
    if kind == "type":
        piece = (types or {}).get(cell)
        return words["corpus_cell_id"].format(id=cell) if piece is None else quoted(piece)
    if kind in ("correlation", "partial", "auc"):
        return words[f"corpus_variable_{cell}"]
    if kind == "path":
        return words["corpus_path_none"] if cell == "0" else words["corpus_path"].format(levels=", ".join(cell.split()))
    if kind == "decile":
        return f"{10 * (int(cell) - 1)}–{10 * int(cell)}%"
    if kind == "fifth":
        return words[f"corpus_cell_fifth_{cell}"] if cell in ("1", "5") else cell
    if kind in ("source", "document", "place"):
        return cell.replace("-", "–") if kind == "place" else cell
    named = _NAMED.get(kind, "").format(cell=cell)
    return words.get(named) or words.get(f"corpus_cell_{kind}_{cell}") or words.get(f"corpus_cell_{cell}") or cell


def shares(rows: pd.DataFrame, names: Sequence[str], overall: float, words: Words) -> go.Figure:
    """Share kept of every cell with its interval; cells that differ from all other tokens are filled.

    Args:
        rows: of the measure "share".
        names: of the cells.
        overall: share kept of all tokens.
        words: all labels on screen.
    """
    marked = rows["marked"].tolist()
    figure = go.Figure()
    figure.add_bar(
        x=[escape(name) for name in names],
        y=rows["value"],
        error_y=_errors(rows),
        marker={"color": KEPT, "pattern": {"shape": ["" if mark else "/" for mark in marked]}},
        customdata=rows[["tokens", "documents"]],
        hovertemplate="%{x}: %{y:.1%}<br>" + words["corpus_hover"] + "<extra></extra>",
    )
    line = {"color": NEUTRAL, "dash": "dash"}
    figure.add_hline(overall, line=line, annotation_text=words["corpus_overall"], annotation_position="right")
    layout = LAYOUT | {"margin": LAYOUT["margin"] | {"r": 80}}  # type: ignore[operator] # beside the bars, for the text
    figure.update_layout(**layout, yaxis_title=words["figure_kept_share"], showlegend=False)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    figure.update_xaxes(type="category")
    return figure


def associations(rows: Mapping[str, pd.DataFrame], words: Words) -> go.Figure:
    """Rank correlations of the score with every variable, before and after token type and place.

    Args:
        rows: of the measures "correlation" and "partial", by these names.
        words: all labels on screen.
    """
    figure = go.Figure()
    for measure, colour, symbol in (("correlation", KEPT, "circle"), ("partial", DROPPED, "diamond")):
        own = rows[measure]
        figure.add_scatter(
            x=[words[f"corpus_variable_{cell}"] for cell in own["cell"]],
            y=own["value"],
            error_y=_errors(own),
            mode="markers",
            name=words[f"corpus_{measure}"],
            marker={"color": colour, "symbol": symbol, "size": 10},
            customdata=own[["tokens", "documents"]],
            hovertemplate="%{x}: %{y:.3f}<br>" + words["corpus_hover"] + "<extra></extra>",
        )
    figure.add_hline(0, line={"color": NEUTRAL, "width": 1})
    figure.update_layout(**LAYOUT, yaxis_title=words["corpus_rank_correlation"])
    return figure


def differences(rows: pd.DataFrame, names: Sequence[str], words: Words) -> go.Figure:
    """Differences between two results with their intervals; filled where they survive the correction.

    Args:
        rows: as `analysis.corpus.drift.drift` gives them.
        names: of the rows.
        words: all labels on screen.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=rows["difference"],
        y=[escape(name) for name in names],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": rows["high"] - rows["difference"],
            "arrayminus": rows["difference"] - rows["low"],
        },
        mode="markers",
        marker={"color": KEPT, "size": 9, "symbol": ["circle" if mark else "circle-open" for mark in rows["marked"]]},
        customdata=rows[["first", "second"]],
        hovertemplate="%{y}: %{customdata[0]:.3f} → %{customdata[1]:.3f}<extra></extra>",
    )
    figure.add_vline(0, line={"color": NEUTRAL, "width": 1})
    layout = LAYOUT | {"height": 120 + 24 * len(rows), "margin": LAYOUT["margin"] | {"l": 220}}  # type: ignore[operator]
    figure.update_layout(**layout, xaxis_title=words["corpus_difference_axis"], showlegend=False)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def _errors(rows: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).tolist(),
        "arrayminus": (rows["value"] - rows["low"]).tolist(),
        "color": NEUTRAL,
    }
