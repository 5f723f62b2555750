"""A run in files to take away: a report, the trace, and tables."""

import io
from collections.abc import Callable

import streamlit as st

from analysis import Trace
from analysis.figures.routing_view.data import Shown
from analysis.report import tables
from analysis.report.html import report
from app.strings import language, say


def show(trace: Trace, shown: Shown) -> None:
    """A button for every file; a file is made when it is asked for.

    Args:
        trace: trace of a prompt.
        shown: what the report begins with.
    """
    st.subheader(say("take_title"), help=say("take_help"))
    speaking = language()  # the files are made outside of the visitor's page
    files: dict[str, tuple[str, Callable[[], bytes]]] = {
        "take_report": ("report.html", lambda: report([trace], language=speaking, shown=shown).encode()),
        "take_trace": ("trace.npz", lambda: saved(trace)),
        "take_tokens_csv": ("tokens.csv", lambda: tables.csv(tables.token_table(trace))),
        "take_tokens_parquet": ("tokens.parquet", lambda: tables.parquet(tables.token_table(trace))),
    }
    if trace.routing.num_levels:
        files["take_levels_csv"] = ("levels.csv", lambda: tables.csv(tables.level_table(trace)))
        files["take_levels_parquet"] = ("levels.parquet", lambda: tables.parquet(tables.level_table(trace)))
    with st.container(horizontal=True):
        for key, (name, make) in files.items():
            st.download_button(say(key), make, name, key=key, icon=":material/download:", on_click="ignore")


def saved(trace: Trace) -> bytes:
    """The file of a trace."""
    file = io.BytesIO()
    trace.save(file)
    return file.getvalue()
