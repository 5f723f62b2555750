"""Cost and quality of a run compared with the dense model; every number is of the run on screen."""

import streamlit as st

from analysis import Trace
from analysis.cost.operations import lens_operations, prefill_operations
from analysis.figures import summary
from app import strings
from app.files import configuration
from app.messages import plain
from app.state import Run
from app.strings import language


def headline(trace: Trace) -> None:
    """The most important numbers, in one row."""
    cells = summary.headline(trace, strings.table(language()))
    for column, (label, value, note, explained) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(label, value, note or None, delta_color="off", delta_arrow="off", help=explained)


def table(trace: Trace) -> None:
    """Time, memory and agreement of the run and its reference, with how they were measured."""
    words = strings.table(language())
    if trace.costs is None:
        st.info(summary.measured(trace, words))
    rows = summary.cost_table(trace, words)
    if len(rows):
        st.table(rows)
    if trace.agreement is not None:
        st.caption(summary.agreement(trace, words))
    if trace.costs is not None:
        st.caption(plain(summary.measured(trace, words)))


def lens_cost(run: Run) -> float:
    """Operations of predicting after every block for every token, divided by those of the prefill; both are counted."""
    config = configuration(run.recipe.model.folder)
    routing = run.trace.routing
    return lens_operations(config, routing.block_tokens.tolist()) / prefill_operations(
        config, routing.level_tokens.tolist()
    )
