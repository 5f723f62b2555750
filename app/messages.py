"""What the app says: plain text and figures in Streamlit's elements, which read Markdown, and its log."""

import logging
import os
import re
from typing import Any

import streamlit as st


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


def start_logging() -> None:
    """Give the app's own log a form and a level, once; the logs of libraries are theirs."""
    log = logging.getLogger("app")
    log.setLevel(os.environ.get("SUBLLM_LOG_LEVEL", "WARNING").upper())
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
