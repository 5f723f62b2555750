"""Many documents through one checkpoint: which kinds of tokens are dropped, and two such results side by side."""

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import streamlit as st

from analysis import AnalysisError
from analysis.corpus.aggregate import MOST_SOURCES
from analysis.corpus.schema import RUN, SUMMARY
from analysis.corpus.summary import FILES, Summary
from analysis.figures import corpus as figures
from analysis.report import corpus_tables
from analysis.report.corpus import corpus_report, difference_names
from analysis.report.tables import csv
from app import reproduce
from app.files import corpus_summary
from app.messages import bounded, plain, plot, show_error, sortable
from app.settings import SHIPPED_CORPUS, Settings
from app.state import session
from app.strings import language, name_of, say, table
from app.views import again, chooser
from app.views.boxes import one_of
from app.views.corpus import examples, parts, start
from app.views.corpus.cells import Cell, choose, chosen, compared, forget
from subllm import CheckpointError
from subllm.checkpoints.files import check_inside

_PARTS: dict[str, Callable[[Summary, int], None]] = {
    "kept": parts.kept,
    "paths": parts.paths,
    "scores": parts.scores,
    "types": parts.types,
    "documents": parts.documents,
    "rules": parts.rules,
}
_COMPARED = "compared"
_MOST_DIFFERENCES = 25  # drawn


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("corpus_title"))
    st.write(say("corpus_intro"))
    start.show(settings, chooser.chosen(settings))
    folders = settings.corpora()
    results = [*([start.OWN] if start.own() is not None else []), *folders]
    if not results:
        st.info(say("corpus_none"), icon=":material/info:")
        st.code("subllm corpus --text FOLDER --out checkpoints/corpus", language=None, wrap_lines=True)
        return
    left, right = st.columns(2)
    name = one_of(say("corpus_result"), results, _name, "corpus result", place=left)
    others = ["", *(other for other in results if other != name)]
    other = one_of(say("corpus_beside"), others, _name, f"corpus beside {name}", place=right)
    try:
        summary = _summary(name, folders)
        second = _summary(other, folders) if other else None
    except AnalysisError as error:
        show_error(error)
        return
    _about(name, summary)
    _take_away(name, other, summary, second, folders)
    again.show(reproduce.counted(summary.run), note=say("again_corpus"))
    st.fragment(bounded(_parts))(summary, second, _name(name), _name(other))


def _summary(name: str, folders: dict[str, Path]) -> Summary:
    own = start.own() if name == start.OWN else None
    return corpus_summary(folders[name]) if own is None else own


def _name(name: str) -> str:
    if not name:
        return say("corpus_nothing_beside")
    return say("corpus_own") if name == start.OWN else name_of(name)


def _about(name: str, summary: Summary) -> None:
    """What was read, by what, and what was left out."""
    run, about = summary.run, summary.about
    numbers = [(say("corpus_tokens"), f"{about.tokens:,}"), (say("corpus_documents"), f"{about.documents:,}")]
    if about.loss is not None:
        numbers.append((say("rivals_loss"), f"{about.loss:.3f}"))
    if about.dense_loss is not None:
        numbers.append((say("corpus_dense_loss"), f"{about.dense_loss:.3f}"))
    for column, (label, value) in zip(st.columns(len(numbers)), numbers, strict=True):
        column.metric(label, value)
    st.caption(plain(corpus_tables.facts(run, table(language()), name_of(run.checkpoint))))
    if name == SHIPPED_CORPUS:
        st.caption(say("corpus_shipped"))
    st.caption(corpus_tables.intervals(summary, table(language())))
    if not run.complete:
        st.warning(say("corpus_incomplete"), icon=":material/warning:")
    if run.skipped:
        with st.expander(say("corpus_skipped", n=f"{run.skipped:,}")):
            st.dataframe(corpus_tables.skipped(run, table(language())), hide_index=True)


def _take_away(name: str, other: str, summary: Summary, second: Summary | None, folders: dict[str, Path]) -> None:
    """Files of all numbers; each is made when it is asked for."""
    frame, speaking = summary.measures.drop(columns="resampled"), language()
    names = (_name(name), _name(other))
    files: dict[str, tuple[str, Callable[[], bytes]]] = {
        "corpus_html": (
            "corpus.html",
            lambda: corpus_report(summary, second, names=names, language=speaking).encode(),
        ),
        "corpus_csv": ("corpus.csv", lambda: csv(frame)),
    }
    if name in folders:
        files["corpus_zip"] = ("corpus.zip", lambda: _zipped(folders[name]))
    with st.container(horizontal=True):
        for key, (file, make) in files.items():
            st.download_button(say(key), make, file, key=key, icon=":material/download:", on_click="ignore")


def _zipped(folder: Path) -> bytes:
    """What the page needs of a result: `corpus.json` and the summary, but no link that leads out of the folder."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (RUN, *(f"{SUMMARY}/{file}" for file in FILES)):
            with suppress(CheckpointError):
                check_inside(folder, folder / name)
                if (folder / name).is_file():
                    archive.write(folder / name, name)
    return target.getvalue()


def _parts(summary: Summary, second: Summary | None, name: str, other: str) -> None:
    """One part of the page, and examples of what was clicked in it."""
    own = session()
    names = [*_PARTS, *([_COMPARED] if second is not None else [])]
    asked = st.container(key="corpus parts").segmented_control(
        say("corpus_part"),
        names,
        default=names[0],
        format_func=lambda each: say(f"corpus_part_{each}"),
        key=f"corpus part {second is not None}",
        required=True,
        label_visibility="collapsed",
    )
    part = asked if asked in names else names[0]  # a label of another language is none
    if not own.recall("corpus part", (id(summary), part)):
        own.found["corpus part"] = ((id(summary), part), True)
        forget()
    if part == _COMPARED and second is not None:
        _compared(summary, second, name, other)
        return
    if not summary.about.levels:
        st.info(say("corpus_no_levels"))
        return
    level = summary.about.levels[0]
    if part not in ("paths", "rules") and len(summary.about.levels) > 1:
        level = one_of(
            say("edit_level"), summary.about.levels, lambda each: parts.level_name(summary, each), "corpus level"
        )
    _PARTS[part](summary, level)
    cell = chosen()
    if cell is not None:
        examples.show(summary, cell, "corpus examples")
    elif part != "rules":
        st.caption(say("corpus_click"))


def _compared(first: Summary, second: Summary, name: str, other: str) -> None:
    """What differs between two results, the largest differences first."""
    found, words = compared(first, second), table(language())
    n = int(found["marked"].sum())
    st.write(plain(say("corpus_differences", n=f"{n:,}", all=f"{len(found):,}", first=name, second=other)))
    names = difference_names(found, first, words)
    top = found.head(_MOST_DIFFERENCES)
    plot(st, figures.differences(top, names[: len(top)], words), "corpus differences")
    frame = pd.DataFrame(
        {
            say("corpus_what"): names,
            say("corpus_first"): found["first"],
            say("corpus_second"): found["second"],
            say("corpus_difference"): found["difference"],
            say("interval_low"): found["low"],
            say("interval_high"): found["high"],
            say("corpus_marked"): corpus_tables.marks(found["marked"]),
            say("corpus_tokens"): found["tokens"],
            say("corpus_documents"): found["documents"],
        }
    )
    picks = [
        Cell(group, cell, level) if measure in ("share", "path") else Cell(f"fifth {cell}", "5", level)
        for measure, level, group, cell in found[["measure", "level", "group", "cell"]].itertuples(index=False)
    ]
    forms = dict.fromkeys((say("corpus_first"), say("corpus_second")), ".3f")
    forms |= dict.fromkeys((say("corpus_difference"), say("interval_low"), say("interval_high")), "+.3f")
    forms |= dict.fromkeys((say("corpus_tokens"), say("corpus_documents")), ",")
    choose(sortable(frame, forms), picks, f"corpus drift {language()}")
    st.caption(say("corpus_differences_help"))
    if first.about.many_sources or second.about.many_sources:
        st.caption(say("corpus_many_sources", n=MOST_SOURCES))
    cell = chosen()
    if cell is None:
        st.caption(say("corpus_click"))
        return
    left, right = st.columns(2)
    with left:
        examples.show(first, cell, "corpus first", name)
    with right:
        examples.show(second, cell, "corpus second", other)
