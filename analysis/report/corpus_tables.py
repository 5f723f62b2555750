"""Tables of a corpus result in words, for the page Corpus and its report."""

import pandas as pd

from ..corpus.schema import CorpusRun
from ..corpus.summary import Summary
from ..figures.terms import place_name
from ..figures.words import Words

_FIRST_SOURCES = 3  # that are named


def facts(run: CorpusRun, words: Words, checkpoint: str) -> str:
    """What read what: checkpoint, structure, device, dtype, and the first sources of the texts.

    Args:
        run: what `corpus.json` says.
        words: of a language.
        checkpoint: what the checkpoint is called.
    """
    sources = run.sources[:_FIRST_SOURCES]
    if len(run.sources) > _FIRST_SOURCES:
        sources.append(words["corpus_sources_in_all"].format(n=f"{len(run.sources):,}"))
    return " · ".join([checkpoint, run.structure, run.device, run.options.dtype, *sources])


def intervals(summary: Summary, words: Words) -> str:
    """How the intervals of a result were found, and what was tested."""
    tests = summary.about.tests
    tested = words["corpus_tested"].format(n=f"{tests:,}") if tests else words["corpus_untested"]
    return words["corpus_intervals"].format(resamples=f"{summary.about.resamples:,}", tested=tested)


def interval(low: float, high: float, form: str) -> str:
    """An interval, or a dash where there is none.

    Args:
        low: its lower end; NaN if there is none.
        high: its upper end.
        form: format of a number.
    """
    return "–" if low != low else f"{low:{form}} … {high:{form}}"


def marks(marked: pd.Series) -> list[str]:
    """A tick for each row that is marked."""
    return ["✓" if mark else "" for mark in marked]


def skipped(run: CorpusRun, words: Words) -> pd.DataFrame:
    """Documents that were left out, the first of them, and why."""
    return pd.DataFrame(
        {
            words["corpus_document"]: [each.name for each in run.skipped_documents],
            words["corpus_reason"]: [each.reason for each in run.skipped_documents],
        }
    )


def entropies(summary: Summary, words: Words) -> pd.DataFrame:
    """How much of each decision the token type says, with the tokens that reach the level; the whole path first."""
    entries = []
    for level in (0, *summary.about.levels):
        found = summary.of("entropy", level).set_index("cell")
        if "decision" not in found.index:
            continue
        name = place_name(summary.run.levels, level, words) if level else words["corpus_path_whole"]
        entry: dict[str, object] = {words["corpus_decision"]: name}
        for cell, key in (("decision", "corpus_bits"), ("given type", "corpus_bits_given")):
            entry[words[key]] = f"{found.loc[cell, 'value']:.3f}" if cell in found.index else "–"
        entry[words["corpus_explained"]] = "–"
        if "explained" in found.index:
            row = found.loc["explained"]
            spread = "" if row["low"] != row["low"] else f" [{row['low']:.0%}, {row['high']:.0%}]"
            entry[words["corpus_explained"]] = f"{row['value']:.0%}{spread}"
        entry[words["corpus_tokens"]] = f"{found.loc['decision', 'tokens']:,}"
        entries.append(entry)
    return pd.DataFrame(entries)


def documents(summary: Summary, level: int, words: Words) -> pd.DataFrame:
    """The documents of which a level keeps the smallest share."""
    rows = summary.documents[summary.documents["level"] == level]
    return pd.DataFrame(
        {
            words["corpus_document"]: rows["name"],
            words["corpus_source"]: rows["source"],
            words["corpus_value"]: [f"{share:.1%}" for share in rows["share"]],
            words["corpus_tokens"]: rows["reached"],
            words["rivals_loss"]: [f"{loss:.3f}" for loss in rows["loss"]],
        }
    )


def document_spread(summary: Summary, level: int, words: Words) -> str:
    """How the shares of long documents vary, and how many those are if that is known; empty where there is none."""
    quantiles = summary.about.quantiles.get(str(level))
    if not quantiles:
        return ""
    low, _, middle, _, high = (f"{value:.0%}" for value in quantiles)
    spread = words["corpus_document_spread"].format(low=low, middle=middle, high=high)
    n = summary.about.long_documents.get(str(level))
    if n is None:
        return spread
    return spread + words["corpus_long_documents"].format(n=f"{n:,}", all=f"{summary.about.documents:,}")


def rules(summary: Summary, words: Words) -> pd.DataFrame:
    """What other rules lose that keep as many tokens; empty if they were not run."""
    hidden = "found" in summary.rules and bool(summary.rules["found"].notna().any())
    entries = [
        {
            words["rivals_rule"]: words[f"rule_{row.rule}"] + (words["corpus_own_weights"] if row.own_weights else ""),
            words["rivals_loss"]: f"{row.loss:.3f}",
            words["rivals_difference"]: f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            words["corpus_marked"]: "✓" if row.marked else "",
            words["rivals_agreement"]: f"{row.agreement:.0%}",
            **({words["corpus_found"]: "–" if row.found != row.found else f"{row.found:.0%}"} if hidden else {}),
            words["corpus_tokens"]: row.tokens,
            words["corpus_documents"]: row.documents,
        }
        for row in summary.rules.itertuples(index=False)
    ]
    return pd.DataFrame(entries)
