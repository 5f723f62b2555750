"""Messages, progress bars, figures and tables in Streamlit's elements, which read Markdown."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from analysis import AnalysisError
from app.strings import explain, say
from subllm import SubllmError
from subllm.assets import ASSETS
from subllm.demo import home

_Arguments = ParamSpec("_Arguments")
REDRAW = 0.2  # seconds between two updates at least: drawing takes time from the run


def plain(text: str) -> str:
    """Text with everything escaped that Markdown would read as markup, as LaTeX or as an emoji.

    Args:
        text: anything, such as a file name or an exception's message.
    """
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!$|~:^&=])", r"\\\1", text).replace("\n", "  \n")


def show_error(error: Exception) -> None:
    """Show what a user can do something about, in the user's language."""
    st.error(plain(told(error)), icon=":material/error:")


def told(error: Exception) -> str:
    """What an error says, in the user's language, without telling where things are on this machine."""
    text = explain(error)
    for folder in _private_folders(os.environ.get("SUBLLM_ROOTS", "checkpoints")):
        text = text.replace(f"{folder}/", "").replace(folder, "…")
    return text


@cache
def _private_folders(roots: str) -> list[str]:
    """Folders whose place is nobody's business, the innermost ones first."""
    folders = [Path(root).expanduser() for root in roots.split(os.pathsep) if root.strip()[:1] not in ("", "~")]
    with suppress(SubllmError):
        folders.append(home())
    folders += [ASSETS, ASSETS.parent, Path.home(), Path(sys.prefix), Path.cwd()]
    found = {str(each) for folder in folders for each in (folder.absolute(), folder.resolve())} - {"/"}
    return sorted(found, key=len, reverse=True)


@contextmanager
def boundary() -> Iterator[None]:
    """Nothing that fails inside reaches Streamlit: what a user can do something about is said, the rest is logged."""
    try:
        yield
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    except Exception:
        logging.getLogger("app").exception("A page failed")
        st.error(say("failed"))


def bounded(draw: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """A part of a page within a `boundary`: Streamlit runs fragments without the page around them."""

    @wraps(draw)
    def drawn(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
        with boundary():
            draw(*arguments, **options)

    return drawn


def plot(where: Any, figure: Any, key: str) -> None:
    """Show a Plotly figure. Its toolbar has one button, which saves the figure as a picture.

    Args:
        where: container for the figure.
        figure: Plotly figure.
        key: key of the element.
    """
    name = re.sub(r"\W+", "-", key)
    buttons = {"modeBarButtons": [["toImage"]], "toImageButtonOptions": {"filename": name, "scale": 2}}
    where.plotly_chart(figure, key=key, config={"displaylogo": False, **buttons})


def sortable(rows: pd.DataFrame, forms: Mapping[str, str | Iterable[str]]) -> Styler:
    """A table that a click on a header sorts by numbers, and not by how they are written. Give it a placeholder.

    Args:
        rows: with numbers in the columns of `forms`.
        forms: format of the numbers of a column, such as ".1%", or what is written in each of its cells.
    """
    shown = rows.style
    for column, form in forms.items():
        if isinstance(form, str):
            shown.format(f"{{:{form}}}", na_rep="–", subset=[column])
            continue
        for row, text in zip(rows.index, form, strict=True):
            shown.format(lambda _, text=text: text, subset=pd.IndexSlice[[row], [column]])
    return shown


class ProgressBar:
    """A progress bar with text in the user's language: a `Progress` with a place on the page.

    It is drawn at its first call, and again if it is called after it was cleared. As a context it shows at once that a
    run starts, and clears its place at the end. While it is there, so is the button of `app.components.stop`.

    Create it in every run of the script, whether or not there is something to do: Streamlit tells what is below it
    apart by position, and would show it twice while the bar is there.
    """

    def __init__(self) -> None:
        """Reserve a place in the current container."""
        self._reserve()

    def _reserve(self) -> None:
        self._place = st.empty()
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
        self._place.progress(min(max(share, 0.0), 1.0), plain(text))

    def clear(self) -> None:
        """Show nothing until the next call."""
        self._place.empty()
        self._last = ("", 0.0)

    def move(self) -> None:
        """Clear the place, and reserve one in the current container."""
        self.clear()
        self._reserve()
