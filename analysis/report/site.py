"""A folder of reports with an index, for any server of static files."""

import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from subllm.atomic import added_whole, full_disk_reported
from subllm.errors import shortened

from ..errors import AnalysisError
from ..figures.strings import LANGUAGES, table
from ..figures.words import Words
from ..trace.trace import Trace
from .html import both, document, element, report

_BEGINNING = 90  # characters of a prompt in the index


class Page(NamedTuple):
    """One report of a site.

    Attributes:
        name: of the page and of its file.
        files: trace files that it shows, side by side if there are several.
        traces: what they hold.
    """

    name: str
    files: Sequence[Path]
    traces: Sequence[Trace]

    @property
    def names(self) -> list[str]:
        """What its runs are called."""
        return [file.stem for file in self.files]


def write_site(pages: Sequence[Page], folder: Path, *, language: str = "en", note: str = "", app: str = "") -> None:
    """Write a report for every page, the trace files, and an index; other files in the folder stay.

    Args:
        pages: with different names.
        folder: that is made, if it is not there.
        language: that the pages open in.
        note: text in front of the index.
        app: address of the app, which the index links to.

    Raises:
        AnalysisError: if two pages, or two different files, have one name, if one is called like the index, or if the
            app's address is not one of the web.
    """
    if app and not app.startswith(("https://", "http://")):
        raise AnalysisError("{app!r} is not an address; write one that begins with https://.", app=shortened(app))
    taken: dict[str, Path | None] = {"index.html": None}
    for page in pages:
        for name, source in ((f"{page.name}.html", None), *((file.name, file.resolve()) for file in page.files)):
            if name.casefold() in taken and (source is None or taken[name.casefold()] != source):
                raise AnalysisError("Two files of the site would be called {name!r}; rename one of them.", name=name)
            taken[name.casefold()] = source
    with full_disk_reported(folder), added_whole(folder) as partial:
        for page in pages:
            text = report(page.traces, language=language, names=page.names if len(page.traces) > 1 else (page.name,))
            (partial / f"{page.name}.html").write_text(text, encoding="utf-8")
            for file in page.files:
                shutil.copyfile(file, partial / file.name)
        (partial / "index.html").write_text(index(pages, language=language, note=note, app=app), encoding="utf-8")


def index(pages: Sequence[Page], *, language: str = "en", note: str = "", app: str = "") -> str:
    """The list of reports.

    Args:
        pages: to list.
        language: that it opens in.
        note: text in front of the list.
        app: address of the app, which is linked to.
    """
    titles = {each: table(each)["report_index"] for each in LANGUAGES}
    return document(
        both(language, lambda words: _listed(pages, note, app, words)), {"titles": titles}, "index.js", language
    )


def _listed(pages: Sequence[Page], note: str, app: str, words: Words) -> str:
    columns = ("report_index", "checkpoint", "report_index_tokens", "beside_kept", "report_index_begin")
    head = element("tr", *(element("th", escape(words[key]), scope="col") for key in (*columns, "report_index_file")))
    parts = [element("h1", escape(words["report_index"]))]
    if note:
        parts.append(element("p", escape(note), class_="note"))
    if app:
        parts.append(
            element("p", element("a", escape(words["report_live"]), href=app, target="_blank", rel="noopener"))
        )
    rows = [row for page in pages for row in _rows(page, words)]
    return "".join([*parts, element("div", element("table", head, *rows), class_="scroll", tabindex="0")])


def _rows(page: Page, words: Words) -> list[str]:
    """A row for each run of a page; the first one links to it."""
    rows, link = [], element("a", escape(page.name), href=f"{quote(page.name)}.html")
    for number, (file, trace) in enumerate(zip(page.files, page.traces, strict=True)):
        kept = ", ".join("–" if np.isnan(share) else f"{share:.0%}" for share in trace.routing.retention)
        checkpoint, begin = trace.provenance.checkpoint, " ".join(trace.prompt.text[:_BEGINNING].split())
        rows.append(
            element(
                "tr",
                element("td", "" if number else link),
                element("td", escape(words.get(f"name_{checkpoint}", checkpoint))),
                element("td", f"{trace.num_tokens:,}", class_="number"),
                element("td", kept or "–"),
                element("td", escape(begin), "…" if len(trace.prompt.text) > _BEGINNING else ""),
                element("td", element("a", escape(file.name), href=quote(file.name))),
            )
        )
    return rows
