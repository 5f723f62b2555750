"""Numbers of cells as a table and a figure; a click on a row or a bar opens real examples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from analysis.corpus.drift import drift
from analysis.corpus.summary import Summary
from analysis.figures import corpus as figures
from analysis.report import corpus_tables
from app.messages import sortable
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


def shown(rows: pd.DataFrame, summary: Summary, *, against: bool = True) -> Styler:
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
        say("corpus_value"): rows["value"].tolist(),
        say("interval_low"): rows["low"].tolist(),
        say("interval_high"): rows["high"].tolist(),
    }
    forms = dict.fromkeys((say("corpus_value"), say("interval_low"), say("interval_high")), form)
    if against:
        if share:
            columns[say("corpus_apart")] = (100 * rows["difference"]).tolist()
            forms[say("corpus_apart")] = "+.1f"
        columns[say("corpus_marked")] = corpus_tables.marks(rows["marked"])
    columns[say("corpus_tokens")] = rows["tokens"].tolist()
    columns[say("corpus_documents")] = rows["documents"].tolist()
    return sortable(pd.DataFrame(columns), forms | dict.fromkeys((say("corpus_tokens"), say("corpus_documents")), ","))


def cell_names(rows: pd.DataFrame, summary: Summary) -> list[str]:
    """Names of the cells of rows."""
    words, types = table(language()), summary.type_names()
    return [figures.cell_name(group, cell, words, types) for group, cell in rows[["group", "cell"]].values]


def choose(frame: Styler, cells: Sequence[Cell], key: str) -> None:
    """A table whose rows open examples.

    Args:
        frame: the table.
        cells: cell of each row.
        key: key of the element.
    """
    st.dataframe(
        frame,
        hide_index=True,
        placeholder="–",
        key=key,
        selection_mode="single-row",
        on_select=_noted(key, cells, _row_of),
    )


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
