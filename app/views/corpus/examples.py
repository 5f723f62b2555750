"""Real examples of a cell, in the view of Explore."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from analysis.corpus.summary import Summary
from analysis.figures import corpus as figures
from analysis.figures.quoted import quoted
from analysis.figures.routing_view.data import Shown
from app.messages import plain
from app.state import session
from app.strings import language, say, table
from app.views.corpus.cells import Cell
from app.views.trace import text_and_map

MOST = 20
_AROUND = 40  # characters before and after a token in the list


def show(summary: Summary, cell: Cell, key: str, title: str = "") -> None:
    """A list of examples, and the one that is chosen as text and map.

    Args:
        summary: of a corpus result.
        cell: whose examples are meant.
        key: prefix of the keys of elements.
        title: name of the result, where there are several.
    """
    words = table(language())
    name = figures.cell_name(cell.group, cell.cell, words, summary.type_names())
    heading = say("corpus_examples", group=figures.group_name(cell.group, words), cell=name)
    if title:
        heading = say("labelled", label=title, value=heading)
    st.markdown(f"**{plain(heading)}**")
    rows = _spread(summary.examples_of(cell.group, cell.cell, cell.level))
    if not len(rows):
        st.info(say("corpus_no_examples" if summary.run.options.texts else "corpus_no_texts"))
        return
    names = f"{key} {cell.group} {cell.cell} {cell.level}"
    chosen = st.dataframe(
        _list(summary, rows), hide_index=True, height=215, on_select="rerun", selection_mode="single-row", key=names
    )["selection"]["rows"]
    row = rows.iloc[chosen[0] if chosen and chosen[0] < len(rows) else 0]
    _view(summary, int(row["excerpt"]), int(row["token"]), cell, f"{key} view")
    st.caption(say("corpus_excerpt_note"))


def _spread(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST` examples, kept and dropped ones in turn."""
    order = rows.groupby("kept").cumcount()
    return rows.assign(order=order).sort_values(["order", "kept"], kind="stable").head(MOST)


def _list(summary: Summary, rows: pd.DataFrame) -> pd.DataFrame:
    entries = []
    for kept, excerpt, token in rows[["kept", "excerpt", "token"]].itertuples(index=False):
        row = summary.excerpts.slice(excerpt, 1).to_pylist()[0]
        text, start, end = row["text"], row["starts"][token], row["ends"][token]
        entries.append(
            {
                say("corpus_state"): say("figure_kept" if kept else "figure_dropped"),
                say("corpus_before"): "…" + text[max(start - _AROUND, 0) : start],
                say("corpus_token"): quoted(text[start:end]),
                say("corpus_after"): text[end : end + _AROUND] + "…",
                say("corpus_document"): row["name"],
            }
        )
    return pd.DataFrame(entries)


def _view(summary: Summary, excerpt: int, token: int, cell: Cell, key: str) -> None:
    """Text and map of an excerpt; the colour is that of every page, level and token those of the example."""
    own = session()
    trace = summary.trace(excerpt)
    asked = Shown.parse({**own.shown, "level": cell.level or 1, "selected": token, "until": token}, trace)
    known = own.recall(key, (trace.subject, token, cell.level))
    if known is not None:  # moved on from the example
        asked = Shown.parse(vars(known), trace)
    shown = text_and_map.draw(trace, asked, key=key)
    own.found[key] = ((trace.subject, token, cell.level), shown)
    if shown.colour != asked.colour:
        before = Shown.parse(own.shown, trace)
        own.show(replace(before, colour=shown.colour), before)
