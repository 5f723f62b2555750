"""A corpus result as one HTML file that opens offline: the numbers of the page Corpus, in both languages.

The examples are not in it, and of the differences between two results the first 200.
"""

from collections.abc import Iterator
from html import escape

import pandas as pd

from ..corpus.aggregate import MOST_SOURCES
from ..corpus.drift import drift
from ..corpus.summary import Summary
from ..figures.corpus import cell_name, group_name
from ..figures.strings import LANGUAGES, table
from ..figures.terms import place_name
from ..figures.words import Words
from . import corpus_tables
from .html import both, document, element, html_table

_ALONE = "all"  # a group of one cell
_MOST_DIFFERENCES = 200


def corpus_report(
    summary: Summary, second: Summary | None = None, *, names: tuple[str, str] = ("", ""), language: str = "en"
) -> str:
    """The report of a result, or of two and what differs between them.

    Args:
        summary: of a result.
        second: of another one.
        names: what the results are called.
        language: that it opens in; the reader can change it.
    """
    titles = {each: table(each)["corpus_title"] for each in LANGUAGES}
    body = both(language, lambda words: "".join(_parts(summary, second, names, words)))
    return document(body, {"titles": titles}, "index.js", language)


def _parts(summary: Summary, second: Summary | None, names: tuple[str, str], words: Words) -> Iterator[str]:
    yield element("h1", escape(words["corpus_title"]))
    if second is not None:
        yield from _compared(summary, second, names, words)
    for name, each in zip(names, (summary, *([second] if second is not None else [])), strict=False):
        yield from _result(each, name, words)


def _result(summary: Summary, name: str, words: Words) -> Iterator[str]:
    run, about = summary.run, summary.about
    if name:
        yield element("h2", escape(name))
    counts = f"{words['corpus_tokens']}: {about.tokens:,}; {words['corpus_documents']}: {about.documents:,}"
    if about.loss is not None:
        counts += f"; {words['rivals_loss']}: {about.loss:.3f}"
    if about.dense_loss is not None:
        counts += f"; {words['corpus_dense_loss']}: {about.dense_loss:.3f}"
    yield element("p", escape(counts))
    yield element("p", escape(f"{corpus_tables.facts(run, words, run.checkpoint)} · {run.versions}"))
    if not run.complete:
        yield element("p", element("strong", escape(words["corpus_incomplete"])))
    yield element("p", escape(corpus_tables.intervals(summary, words)))
    rows = summary.of("path", 0)
    if len(rows):
        yield element("h3", escape(words["corpus_part_paths"]))
        yield _numbers(rows, summary, words)
    yield from _table(
        words["corpus_decides"],
        corpus_tables.entropies(summary, words),
        words["corpus_decides_help"].format(n=f"{about.often:,}", types=f"{about.types:,}"),
    )
    yield from _table(words["corpus_part_rules"], corpus_tables.rules(summary, words), words["corpus_rules_help"])
    for level in about.levels:
        yield element("h3", escape(place_name(run.levels, level, words)))
        for measure in ("correlation", "partial", "auc"):
            rows = summary.of(measure, level)
            if len(rows):
                yield element("h4", escape(words[f"corpus_{measure}"]))
                yield _numbers(rows, summary, words)
        shares = summary.of("share", level)
        for group in dict.fromkeys(shares["group"]):
            rows = shares[shares["group"] == group]
            if group != _ALONE and len(rows) > 1 and not group.startswith("document"):
                yield element("h4", escape(group_name(group, words)))
                yield _numbers(rows, summary, words)
        if about.many_sources:
            yield element("p", escape(words["corpus_many_sources"].format(n=MOST_SOURCES)))
        spread = corpus_tables.document_spread(summary, level, words)
        about_documents = f"{spread} {words['corpus_documents_help']}"
        yield from _table(
            words["corpus_part_documents"], corpus_tables.documents(summary, level, words), about_documents
        )
    yield from _table(words["corpus_left_out"], corpus_tables.skipped(run, words), f"{run.skipped:,}")


def _table(title: str, rows: pd.DataFrame, note: str) -> Iterator[str]:
    """A table below its title and above a note; nothing if it has no rows."""
    if len(rows):
        yield element("h4", escape(title))
        written = rows.map(lambda value: value if isinstance(value, str) else f"{value:,}")
        yield html_table(written.set_index(written.columns[0]), numbers=False)
        yield element("p", escape(note))


def _numbers(rows: pd.DataFrame, summary: Summary, words: Words) -> str:
    """A table of values with their intervals."""
    types, form = summary.type_names(), ".1%" if rows["measure"].iloc[0] in ("share", "path") else "+.3f"
    return html_table(
        pd.DataFrame(
            {
                words["corpus_value"]: [f"{value:{form}}" for value in rows["value"]],
                words["corpus_interval"]: [
                    corpus_tables.interval(low, high, form)
                    for low, high in rows[["low", "high"]].itertuples(index=False)
                ],
                words["corpus_marked"]: corpus_tables.marks(rows["marked"]),
                words["corpus_tokens"]: [f"{count:,}" for count in rows["tokens"]],
                words["corpus_documents"]: [f"{count:,}" for count in rows["documents"]],
            },
            index=[cell_name(group, cell, words, types) for group, cell in rows[["group", "cell"]].values],
        )
    )


def difference_names(found: pd.DataFrame, first: Summary, words: Words) -> list[str]:
    """What each row of `analysis.corpus.drift.drift` is about: level, group or measure, and cell."""
    types, names = first.type_names(), []
    for measure, level, group, cell in found[["measure", "level", "group", "cell"]].itertuples(index=False):
        names.append(
            words["corpus_difference_name"].format(
                level=place_name(first.run.levels, level, words) if level else words["corpus_path_whole"],
                measure=group_name(group, words) if measure in ("share", "path") else words[f"corpus_{measure}"],
                cell=cell_name(group, cell, words, types),
            )
        )
    return names


def _compared(first: Summary, second: Summary, names: tuple[str, str], words: Words) -> Iterator[str]:
    found = drift(first, second).head(_MOST_DIFFERENCES)
    yield element("h2", escape(words["corpus_part_compared"]))
    yield element("p", escape(words["corpus_differences_help"]))
    yield html_table(
        pd.DataFrame(
            {
                names[0] or words["corpus_first"]: [f"{value:.3f}" for value in found["first"]],
                names[1] or words["corpus_second"]: [f"{value:.3f}" for value in found["second"]],
                words["corpus_difference"]: [f"{value:+.3f}" for value in found["difference"]],
                words["corpus_interval"]: [
                    corpus_tables.interval(low, high, "+.3f")
                    for low, high in found[["low", "high"]].itertuples(index=False)
                ],
                words["corpus_marked"]: corpus_tables.marks(found["marked"]),
                words["corpus_tokens"]: [f"{count:,}" for count in found["tokens"]],
                words["corpus_documents"]: [f"{count:,}" for count in found["documents"]],
            },
            index=difference_names(found, first, words),
        )
    )
