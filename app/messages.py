"""Messages, progress bars and figures in Streamlit's elements, which read Markdown; and the app's log."""

import logging
import os
import re
import time
from typing import Any

import streamlit as st

from app.strings import explain, say

REDRAW = 0.2  # seconds between two updates at least: drawing takes time from the run


def plain(text: str) -> str:
    """Text with everything escaped that Markdown would read as markup, as LaTeX or as an emoji.

    Args:
        text: anything, such as a file name or an exception's message.
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!$|~:^&=])", r"\\\1", text).replace("\n", "  \n")


def show_error(error: Exception) -> None:
    """Show what a user can do something about, in the user's language."""
    st.error(plain(explain(error)), icon=":material/error:")


def plot(where: Any, figure: Any, key: str) -> None:
    """Show a Plotly figure without its toolbar.

    Args:
        where: container for the figure.
        figure: Plotly figure.
        key: key of the element.
    """
    where.plotly_chart(figure, key=key, config={"displayModeBar": False})


class ProgressBar:
    """A progress bar with text in the user's language: a `Progress` with a place on the page.

    It is drawn at its first call, and again if it is called after it was cleared. As a context it shows at once that a
    run starts, and clears its place at the end.

    Create it in every run of the script, whether or not there is something to do: Streamlit tells what is below it
    apart by position, and would show it twice while the bar is there.
    """

    def __init__(self, key: str | None = None) -> None:
        """Reserve a place in the current container.

        Args:
            key: of a button that stops the run, if there is to be one: any press ends the script's run.
        """
        self._key, self._times_drawn = key, 0
        self._reserve()

    def _reserve(self) -> None:
        self._place = st.empty()
        self._bar: Any = None
        self._last = ("", 0.0)

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """See `Progress`."""
        if stage == self._last[0] and time.monotonic() - self._last[1] < REDRAW:
            return
        self._last = (stage, time.monotonic())
        self._draw(share, say(f"progress_{stage}", **values))

    def __enter__(self) -> "ProgressBar":
        self._draw(0.0, say("starting"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # what ends the script's run is neither
            self.clear()

    def _draw(self, share: float, text: str) -> None:
        share, text = min(max(share, 0.0), 1.0), plain(text)
        if self._bar is not None:
            self._bar.progress(share, text)
            return
        columns = self._place.container().columns([6, 1], vertical_alignment="center")
        self._bar = columns[0].progress(share, text)
        self._times_drawn += 1
        if self._key:
            key = self._key if self._times_drawn == 1 else f"{self._key} {self._times_drawn}"
            columns[1].button(say("stop"), key=key, width="stretch", help=say("stop_help"))

    def clear(self) -> None:
        """Show nothing until the next call."""
        self._place.empty()
        self._bar, self._last = None, ("", 0.0)

    def move(self) -> None:
        """Clear the place, and reserve one in the current container."""
        self.clear()
        self._reserve()


def start_logging() -> None:
    """Give the app's log a format and a level, once; the logs of libraries stay as they are."""
    log = logging.getLogger("app")
    level = os.environ.get("SUBLLM_LOG_LEVEL", "WARNING").upper()
    log.setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")  # `Settings` says what is wrong
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
