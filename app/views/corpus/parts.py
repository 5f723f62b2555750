"""The parts of the page, each about one question."""

import pandas as pd
import streamlit as st

from analysis.corpus.aggregate import MOST_SOURCES
from analysis.corpus.paths import MOST_PATHS
from analysis.corpus.summary import Summary
from analysis.figures import corpus as figures
from analysis.figures.terms import place_name
from analysis.report import corpus_tables
from app.messages import plain, sortable
from app.strings import language, say, table
from app.views.boxes import one_of
from app.views.corpus.cells import Cell, cell_names, choose, choose_in, shown

_GROUPS = (
    "kind", "word", "frequency", "place", "decile", "part", "repeated", "line", "quoted", "bracketed", "code",
    "capital", "special", "script", "segment", "question", "source",
)  # fmt: skip


def kept(summary: Summary, level: int) -> None:
    """Share kept of every cell of a group."""
    rows = summary.of("share", level)
    counts = rows.groupby("group").size()
    groups = [group for group in _GROUPS if counts.get(group, 0) > 1]
    words = table(language())
    if not groups:
        st.info(say("corpus_one_kind"))
        return
    group = one_of(say("corpus_group"), groups, lambda each: figures.group_name(each, words), "corpus group")
    _shares(summary, level, group)
    alone = [figures.group_name(each, words) for each in _GROUPS if counts.get(each, 0) == 1]
    if summary.about.many_sources:
        st.caption(say("corpus_many_sources", n=MOST_SOURCES))
    if alone:
        st.caption(plain(say("corpus_alone", groups=say("comma").join(alone))))


def _shares(summary: Summary, level: int, group: str) -> None:
    rows = summary.of("share", level, group)
    if not len(rows):
        st.info(say("corpus_nothing"))
        return
    cells = [Cell(group, cell, level) for cell in rows["cell"]]
    overall = float(summary.of("share", level, "all")["value"].iloc[0])
    figure = figures.shares(rows, cell_names(rows, summary), overall, table(language()))
    choose_in(figure, cells, f"corpus bars {group} {level} {language()}")
    choose(shown(rows, summary), cells, f"corpus table {group} {level} {language()}")
    st.caption(say("corpus_shares_help"))


def paths(summary: Summary, level: int) -> None:
    """Which levels keep a token, and how much of that its type says."""
    rows = summary.of("path", 0)
    cells = [Cell("path", cell, 0) for cell in rows["cell"]]
    choose(shown(rows, summary, against=False), cells, f"corpus paths {language()}")
    st.caption(say("corpus_paths_help", most=MOST_PATHS))
    _entropies(summary)


def _entropies(summary: Summary) -> None:
    st.markdown(f"**{say('corpus_decides')}**")
    found = corpus_tables.entropies(summary, table(language()))
    if not len(found):
        st.info(say("corpus_rare_only"))
        return
    st.table(found.set_index(say("corpus_decision")))
    st.caption(say("corpus_decides_help", n=f"{summary.about.often:,}", types=f"{summary.about.types:,}"))


def scores(summary: Summary, level: int) -> None:
    """What goes with a level's scores and decisions."""
    words = table(language())
    measures = {measure: summary.of(measure, level) for measure in ("correlation", "partial", "auc")}
    if len(measures["correlation"]):
        cells = [Cell(f"fifth {cell}", "5", level) for cell in measures["correlation"]["cell"]]
        choose_in(figures.associations(measures, words), cells, f"corpus associations {level} {language()}")
    else:
        st.info(say("corpus_unscored"))
    found = measures["auc"]
    if not len(found):
        st.info(say("corpus_nothing"))
        return
    columns: dict[str, object] = {say("corpus_variable"): [words[f"corpus_variable_{cell}"] for cell in found["cell"]]}
    forms: dict[str, str | list[str]] = dict.fromkeys((say("corpus_tokens"), say("corpus_documents")), ",")
    for measure, rows in measures.items():
        own = rows.set_index("cell").reindex(found["cell"])
        columns[say(f"corpus_{measure}")] = own["value"].tolist()
        forms[say(f"corpus_{measure}")] = [_with_interval(row) for _, row in own.iterrows()]
    columns[say("corpus_tokens")] = found["tokens"].tolist()
    columns[say("corpus_documents")] = found["documents"].tolist()
    cells = [Cell(f"fifth {cell}", "5", level) for cell in found["cell"]]
    choose(sortable(pd.DataFrame(columns), forms), cells, f"corpus scores {level} {language()}")
    st.caption(say("corpus_scores_help"))
    variables = found["cell"].tolist()
    variable = one_of(
        say("corpus_fifths_of"), variables, lambda each: words[f"corpus_variable_{each}"], "corpus variable"
    )
    _shares(summary, level, f"fifth {variable}")


def _with_interval(row: pd.Series) -> str:
    if row["value"] != row["value"]:
        return "–"
    spread = "" if row["low"] != row["low"] else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{spread}{' ✓' if row['marked'] else ''}"


def types(summary: Summary, level: int) -> None:
    """Token types that are both kept and dropped."""
    group = f"type {level}"
    rows = summary.of("share", level, group)
    if not len(rows):
        st.info(say("corpus_no_flips"))
        return
    cells = [Cell(group, cell, level) for cell in rows["cell"]]
    choose(shown(rows, summary), cells, f"corpus types {level} {language()}")
    st.caption(say("corpus_types_help"))


def documents(summary: Summary, level: int) -> None:
    """How documents differ, and those of which least is kept."""
    spread = corpus_tables.document_spread(summary, level, table(language()))
    if spread:
        st.write(spread)
    rows = summary.documents[summary.documents["level"] == level]
    if not len(rows):
        st.info(say("corpus_short_documents"))
        return
    frame = corpus_tables.documents(summary, level, table(language()))
    numbers = {say("corpus_value"): rows["share"], say("rivals_loss"): rows["loss"]}
    forms = {say("corpus_value"): ".1%", say("corpus_tokens"): ",", say("rivals_loss"): ".3f"}
    cells = [Cell(f"document {level}", str(document), level) for document in rows["document"]]
    choose(sortable(frame.assign(**numbers), forms), cells, f"corpus documents {level} {language()}")
    st.caption(say("corpus_documents_help"))


def rules(summary: Summary, level: int) -> None:
    """What other rules lose that keep as many tokens."""
    own, found = summary.rules, corpus_tables.rules(summary, table(language()))
    if not len(found):
        st.info(say("corpus_no_rules"))
        st.code("subllm corpus-rivals DIR", language=None, wrap_lines=True)
        return
    numbers = {say(f"rivals_{name}"): own[name].tolist() for name in ("loss", "difference", "agreement")} | (
        {say("corpus_found"): own["found"].tolist()} if say("corpus_found") in found else {}
    )
    forms = {name: found[name].tolist() for name in numbers}
    forms |= {say(name): [f"{n:,}" for n in found[say(name)]] for name in ("corpus_tokens", "corpus_documents")}
    st.dataframe(
        sortable(found.assign(**numbers), forms), hide_index=True, placeholder="–", key=f"corpus rules {language()}"
    )
    st.caption(say("corpus_rules_help"))


def level_name(summary: Summary, level: int) -> str:
    """Name of a level on screen."""
    return place_name(summary.run.levels, level, table(language()))
