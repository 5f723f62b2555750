"""A summary that cannot be what the second pass wrote is refused in words, whatever was done to its files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.corpus import summary as module
from analysis.corpus.aggregate import aggregate
from analysis.corpus.schema import DOCUMENTS, name_of
from analysis.corpus.summary import Summary, write_rules
from analysis.errors import CorpusError
from tests.analysis.corpus.simulated import simulate


@pytest.fixture
def folder(tmp_path):
    simulate(tmp_path, 3, 40)
    aggregate(tmp_path)
    return tmp_path


def _changed(folder, name, change):
    """Replace a column of a table, or remove it where `change` is None."""
    table, column = name.split(" ")
    path = folder / "summary" / f"{table}.parquet"
    content = pq.read_table(path)
    number = content.column_names.index(column)
    rows = content[column].to_pylist()
    content = (
        content.remove_column(number)
        if change is None
        else content.set_column(number, column, pa.array([change(row) for row in rows]))
    )
    pq.write_table(content, path)


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("examples excerpt", lambda row: row + 10**6, "an excerpt is out of range"),
        ("examples excerpt", lambda row: -1, "an excerpt is out of range"),
        ("examples token", lambda row: row + 10_000, "a token is out of range"),
        ("examples level", lambda row: 3, "a level in examples"),
        ("examples cell", lambda row: None, "empty"),
        ("measures level", lambda row: -1, "a level in measures"),
        ("measures value", lambda row: f"<{row}>", "cannot be read"),
        ("measures chance", None, "cannot be read"),
        ("documents name", None, "cannot be read"),
        ("excerpts kept", lambda row: row[:-1], "kept has another number of tokens"),
        ("excerpts score_2", lambda row: None, "empty"),
        ("excerpts score_1", None, "cannot be read"),
        ("excerpts ends", lambda row: [end + 10_000 for end in row], "the end of a token is out of range"),
        ("excerpts starts", lambda row: [start - 10_000 for start in row], "the beginning of a token"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(folder, column, change, words):
    Summary.read(folder)
    _changed(folder, column, change)
    with pytest.raises(CorpusError, match=words):
        Summary.read(folder)


@pytest.mark.parametrize("levels", [[7], ["1"], 1, None])
def test_levels_that_are_none_are_refused(folder, levels):
    about = folder / "summary" / "summary.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"levels": levels}))
    with pytest.raises(CorpusError, match="cannot be read"):
        Summary.read(folder)


def test_a_small_file_that_would_fill_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 1 << 20)
    path = folder / "summary" / "measures.parquet"
    content = pq.read_table(path).slice(0, 1)
    content = content.set_column(2, "group", pa.array(["x" * 2000]))
    pq.write_table(content.take(np.zeros(10_000, dtype=np.int64)), path)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(CorpusError, match="more than a summary has"):
        Summary.read(folder)


def test_a_summary_of_other_tokens_than_the_run_has_is_refused(folder):
    simulate(folder, 6, 40)
    with pytest.raises(CorpusError, match=r"is of 120 tokens, and corpus\.json lists 240"):
        Summary.read(folder)


def test_rules_that_were_compared_on_other_tokens_go_with_the_summary_that_they_belong_to(folder):
    write_rules(folder, pa.table({"rule": ["model"]}))
    assert len(Summary.read(folder).rules) == 1
    simulate(folder, 6, 40)
    aggregate(folder)
    assert not len(Summary.read(folder).rules)


def test_an_excerpt_has_the_name_of_its_document_also_after_sources_were_renamed(folder):
    found = Summary.read(folder)
    rows = found.excerpts.to_pylist()
    assert rows and all(row["name"] == f"document {row['document']}" for row in rows)
    assert set(found.renamed({"document": "text"}).excerpts["name"].to_pylist()) == {"text"}


def test_a_digest_that_is_none_is_said_to_be_one_of_a_damaged_table(tmp_path):
    simulate(tmp_path, 3, 40)
    path = tmp_path / name_of(DOCUMENTS, 0)
    table = pq.read_table(path)
    number = table.column_names.index("digest")
    pq.write_table(table.set_column(number, "digest", pa.array(["no hexadecimal number"] * 3)), path)
    with pytest.raises(CorpusError, match=r"documents/00000\.parquet cannot be read"):
        aggregate(tmp_path)
