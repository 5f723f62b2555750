"""`subllm report`: HTML files that show saved traces, open offline, and can be put on any server."""

import argparse
import sys
from pathlib import Path

from subllm.atomic import full_disk_reported, written_whole
from subllm.command import Arguments

from ..corpus.summary import Summary
from ..errors import AnalysisError
from ..figures.strings import LANGUAGES
from ..report.corpus import corpus_report
from ..report.html import report
from ..report.site import Page, write_site
from ..trace.trace import Trace
from .arguments import analysis_command, check_file, check_folder

_BESIDE = "+"  # joins the files of one page
_SUFFIX = ".html"


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm report",
        description="Show saved traces, or a result of subllm corpus, in HTML files that need no network. Files joined "
        "by + are shown side by side.",
    )
    parser.add_argument(
        "traces", nargs="+", metavar="FILE.npz|DIR", help="trace, or several joined by +; or a corpus result, or two"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.html|DIR", help="one report, or a folder with an index"
    )
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="that the pages open in (default: en)")
    parser.add_argument("--note", default="", help="text in front of the report of traces, or of the index")
    parser.add_argument("--app", default="", metavar="URL", help="address of the app, which the index links to")
    chosen = parser.parse_args(arguments)
    one = chosen.out.suffix.lower() == _SUFFIX
    (check_file if one else check_folder)(chosen.out)
    corpora = [folder for text in chosen.traces for folder in _corpora(text)]
    if corpora:
        if len(chosen.traces) > 1 or len(corpora) > 2 or not one:
            raise AnalysisError(
                "A corpus result is shown in one .html file of its own, beside at most one other; write DIR or "
                "DIR+DIR, and --out FILE.html."
            )
        summaries = [Summary.read(folder) for folder in corpora]
        called = [folder.absolute().name for folder in corpora]
        _write(chosen.out, corpus_report(*summaries, names=(called[0], called[-1]), language=chosen.language))
        return
    pages = [_page(text) for text in chosen.traces]
    if not one:
        write_site(pages, chosen.out, language=chosen.language, note=chosen.note, app=chosen.app)
        print(chosen.out / "index.html")  # noqa: T201
        return
    if len(pages) > 1:
        raise AnalysisError(
            "{out} is one file, and {n} reports are to be written; name a folder, or join the files by +.",
            out=chosen.out,
            n=len(pages),
        )
    (page,) = pages
    names = page.names if len(page.traces) > 1 else ()
    text = report(page.traces, language=chosen.language, names=names, note=chosen.note)
    _write(chosen.out, text)


def _write(out: Path, text: str) -> None:
    with full_disk_reported(out), written_whole(out) as partial:
        partial.write_text(text, encoding="utf-8")
    print(out)  # noqa: T201


def _corpora(text: str) -> list[Path]:
    """Folders of corpus results that are named; none if traces are."""
    parts = [Path(text)] if Path(text).is_dir() else [Path(part) for part in text.split(_BESIDE)]
    return parts if all(part.is_dir() for part in parts) else []


def _page(text: str) -> Page:
    """The page of a trace file, or of several."""
    files = [Path(text)] if Path(text).is_file() else [Path(part) for part in text.split(_BESIDE)]
    traces = [Trace.load(file) for file in files]
    return Page(_BESIDE.join(file.stem for file in files), files, traces)


if __name__ == "__main__":
    sys.exit(main())
