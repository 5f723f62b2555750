"""Numbers of cells as a table and a figure; a click on a row or a bar opens real examples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import streamlit as st

from analysis.corpus.drift import drift
from analysis.corpus.summary import Summary
from analysis.figures import corpus as figures
from analysis.report import corpus_tables
from app.state import session
from app.strings import language, say, table


class Cell(NamedTuple):
    """A cell whose examples are asked for.

    Attributes:
        group: name of its group in a summary.
        cell: its name there.
        level: from 1; 0 for the whole path.
    """

    group: str
    cell: str
    level: int


def shown(rows: pd.DataFrame, summary: Summary, *, against: bool = True) -> pd.DataFrame:
    """Rows of measures as a table on screen.

    Args:
        rows: of a summary.
        summary: that they are of.
        against: whether they were compared with all other tokens.
    """
    names, share = cell_names(rows, summary), _is_share(rows)
    form = ".1%" if share else "+.3f"
    columns: dict[str, object] = {
        say("corpus_what"): names,
        say("corpus_value"): [f"{value:{form}}" for value in rows["value"]],
        say("corpus_interval"): [
            corpus_tables.interval(low, high, form) for low, high in rows[["low", "high"]].itertuples(index=False)
        ],
    }
    if against:
        if share:
            columns[say("corpus_apart")] = [_points(value) for value in rows["difference"]]
        columns[say("corpus_marked")] = corpus_tables.marks(rows["marked"])
    columns[say("corpus_tokens")] = rows["tokens"].tolist()
    columns[say("corpus_documents")] = rows["documents"].tolist()
    return pd.DataFrame(columns)


def cell_names(rows: pd.DataFrame, summary: Summary) -> list[str]:
    """Names of the cells of rows."""
    words, types = table(language()), summary.type_names()
    return [figures.cell_name(group, cell, words, types) for group, cell in rows[["group", "cell"]].values]


def choose(frame: pd.DataFrame, cells: Sequence[Cell], key: str) -> None:
    """A table whose rows open examples.

    Args:
        frame: the table.
        cells: cell of each row.
        key: key of the element.
    """
    st.dataframe(
        frame, hide_index=True, key=key, selection_mode="single-row", on_select=_noted(key, cells, _row_of)
    )  # fmt: skip


def choose_in(figure: Any, cells: Sequence[Cell], key: str) -> None:
    """A figure whose bars and points open examples.

    Args:
        figure: of Plotly.
        cells: cell of each bar or point of a trace.
        key: key of the element.
    """
    st.plotly_chart(
        figure,
        key=key,
        selection_mode="points",
        on_select=_noted(key, cells, _point_of),
        config={"displayModeBar": False},
    )


def chosen() -> Cell | None:
    """The cell that was clicked last."""
    found: Cell | None = session().found.get("corpus cell", (None, None))[1]
    return found


def forget() -> None:
    """No cell is chosen any more."""
    session().found.pop("corpus cell", None)


def _noted(key: str, cells: Sequence[Cell], index_of: Callable[[Any], int | None]) -> Callable[[], None]:
    def note() -> None:
        index = index_of(st.session_state[key]["selection"])
        if index is not None and 0 <= index < len(cells):
            session().found["corpus cell"] = ((), cells[index])

    return note


def _row_of(selection: Any) -> int | None:
    return selection["rows"][0] if selection["rows"] else None


def _point_of(selection: Any) -> int | None:
    return selection["points"][0].get("point_index") if selection["points"] else None


def compared(first: Summary, second: Summary) -> pd.DataFrame:
    """Differences of two results, kept while the same two are looked at."""
    own, key = session(), (id(first), id(second))
    if own.recall("corpus drift", key) is None:
        own.found["corpus drift"] = (key, (first, second, drift(first, second)))  # which keeps both alive
    found: pd.DataFrame = own.recall("corpus drift", key)[2]
    return found


def _is_share(rows: pd.DataFrame) -> bool:
    return bool(rows["measure"].isin(("share", "path")).all())


def _points(value: float) -> str:
    return "–" if value != value else f"{100 * value:+.1f}"
