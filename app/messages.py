"""What the app says: plain text and figures in Streamlit's elements, which read Markdown, and its log."""

import logging
import os
import re
import time
from typing import Any

import streamlit as st

from analysis.record import Progress
from app.strings import say

REDRAW = 0.2  # least seconds between two looks of what moves: drawing takes time from what is being made


def plain(text: str) -> str:
    """Text with everything escaped that Markdown would read as markup, as LaTeX or as an emoji.

    Args:
        text: anything, such as a file name or an exception's message.
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!$|~:^&=])", r"\\\1", text).replace("\n", "  \n")


def show_error(error: Exception) -> None:
    """Show what a user can do something about."""
    st.error(plain(str(error)), icon=":material/error:")


def plot(where: Any, figure: Any, key: str) -> None:
    """Show a Plotly figure without its toolbar.

    Args:
        where: container.
        figure: to show.
        key: of the element.
    """
    where.plotly_chart(figure, key=key, config={"displayModeBar": False})


def progress_bar(place: Any, key: str | None = None) -> Progress:
    """Show how far a run is, in the user's language.

    Args:
        place: empty container for it.
        key: of a button that stops the run, if there is to be one: any press ends the script's run.

    Returns:
        What the run calls.
    """
    columns = place.container().columns([6, 1], vertical_alignment="center")
    bar = columns[0].progress(0.0, say("starting"))
    if key:
        columns[1].button(say("stop"), key=key, width="stretch", help=say("stop_help"))

    last = ("", 0.0)

    def progress(share: float, stage: str, **values: object) -> None:
        nonlocal last
        if stage == last[0] and time.monotonic() - last[1] < REDRAW:
            return
        last = (stage, time.monotonic())
        bar.progress(min(max(share, 0.0), 1.0), plain(say(f"progress_{stage}", **values)))

    return progress


def start_logging() -> None:
    """Give the app's own log a form and a level, once; the logs of libraries are theirs."""
    log = logging.getLogger("app")
    log.setLevel(os.environ.get("SUBLLM_LOG_LEVEL", "WARNING").upper())
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
