"""The page Corpus, run by Streamlit's own test runner on results of known shares."""

import io
import json
import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest

from analysis.corpus.aggregate import aggregate
from analysis.corpus.cells import BANDS, FREQUENCIES, groups
from analysis.corpus.schema import DOCUMENTS, Skipped
from analysis.corpus.summary import Summary
from analysis.figures import corpus as figures
from analysis.report import corpus_tables
from analysis.report.corpus import corpus_report
from app.settings import Settings
from app.state import Session
from app.strings import LANGUAGES, say, table
from app.views.corpus import parts
from app.views.corpus.cells import Cell
from app.views.corpus.page import _PARTS, _zipped
from tests.analysis.corpus.simulated import simulate
from tests.app.scripts import leaving, script

SCRIPT = script("corpus")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    roots = tmp_path_factory.mktemp("roots")
    for name, seed, texts in (("one", 0, True), ("other", 1, True), ("silent", 2, False)):
        simulate(roots / name, 30, 80, seed=seed, texts=texts)
        aggregate(roots / name)
    return roots


@pytest.fixture
def page(results, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(results))
    monkeypatch.setattr("app.settings._CORPUS", results / "none")
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception
    return app


def _open(page, part, cell=None):
    page.segmented_control(key="corpus part False").set_value(part).run()
    if cell is not None:
        own: Session = page.session_state["session"]
        own.found["corpus cell"] = ((), cell)  # which a click notes
        page.run()
    assert not page.exception and not page.error, page.exception
    return page


def test_results_below_the_roots_are_found_and_are_no_training_runs(page, results):
    found = Settings.read({"SUBLLM_ROOTS": str(results)})
    assert {"one", "other", "silent"} == found.corpora().keys()
    assert not {"one", "other", "silent"} & found.runs().keys()
    assert page.selectbox(key="corpus result").options == ["one", "other", "silent"]


@pytest.mark.parametrize("part", _PARTS)
def test_every_part_is_shown_in_chinese_too(page, part):
    _open(page, part)
    assert page.dataframe or page.info
    chinese = AppTest.from_string(SCRIPT, default_timeout=60)
    chinese.session_state["language"], chinese.session_state["corpus part False"] = "zh", part
    chinese.run()
    assert not chinese.exception and not chinese.error
    assert len(chinese.dataframe) == len(page.dataframe)


@pytest.mark.parametrize(
    "part, cell",
    [
        ("kept", Cell("kind", "digit", 1)),
        ("paths", Cell("path", "1 2", 0)),
        ("scores", Cell("fifth surprisal", "5", 1)),
        ("types", Cell("type 1", "0", 1)),
        ("documents", None),
    ],
)
def test_a_cell_opens_its_examples(page, results, part, cell):
    if cell is None:
        worst = Summary.read(results / "one").documents.iloc[0]
        cell = Cell("document 1", str(worst["document"]), 1)
    _open(page, part, cell)
    lists = [frame.value for frame in page.dataframe if "Token" in frame.value.columns]
    assert len(lists) == 1
    assert 1 <= len(lists[0]) <= 20
    if cell.group == "kind":
        assert set(lists[0]["Decision"]) == {"dropped"}
        assert all(int(piece.strip("'")[-1]) == 3 for piece in lists[0]["Token"])


def test_a_cell_is_forgotten_with_its_part(page):
    _open(page, "kept", Cell("kind", "digit", 1))
    _open(page, "types")
    assert not [frame for frame in page.dataframe if "Token" in frame.value.columns]


def test_two_results_are_compared_and_both_give_examples(page):
    page.selectbox(key="corpus beside one").set_value("other").run()
    page.segmented_control(key="corpus part True").set_value("compared").run()
    assert not page.exception and not page.error
    assert any("numbers differ between one and other" in each.value for each in page.markdown)
    own: Session = page.session_state["session"]
    own.found["corpus cell"] = ((), Cell("kind", "digit", 1))
    page.run()
    assert not page.exception
    assert len([frame for frame in page.dataframe if "Token" in frame.value.columns]) == 2


def test_a_result_without_texts_says_so_in_place_of_examples(page):
    page.selectbox(key="corpus result").set_value("silent").run()
    _open(page, "kept", Cell("kind", "digit", 1))
    assert any("--no-text" in each.value for each in page.info)


def test_a_damaged_result_leaves_the_page_standing(page, results, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "corpus.json").write_text(json.dumps({"format": 9}))
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception
    assert "format 9" in app.error[0].value.replace("\\", "")


def test_the_command_is_shown_where_there_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    monkeypatch.setattr("app.settings._CORPUS", tmp_path)
    page = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not page.exception
    assert "subllm corpus" in page.code[0].value


def test_a_rerun_opens_no_file(page, opened_files):
    _open(page, "scores")
    opened_files.clear()
    page.run()
    assert [path for path in opened_files if path.suffix in (".json", ".parquet")] == []


def test_a_small_run_on_the_page_reads_own_text_and_is_shown(page):
    page.selectbox(key="checkpoint").set_value("shipped:small").run()
    text = "\n\n".join(f"The harbour of town {number} was quiet, and 12 ships lay there." for number in range(40))
    page.text_area(key="corpus text").set_value(text)
    page.slider(key="corpus tokens").set_value(500)
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception and not page.error
    assert page.selectbox(key="corpus result").options[0] == "Your run on this page"
    assert page.selectbox(key="corpus result").value == "own corpus"
    shown = {metric.label: metric.value for metric in page.metric}
    assert 400 <= int(shown["Number of tokens"].replace(",", "")) <= 500
    assert not page.exception and not page.error
    assert not any("/tmp" in caption.value for caption in page.caption)


def test_own_text_stays_while_another_page_is_visited(results, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(results))
    page = AppTest.from_string(leaving(SCRIPT), default_timeout=60).run()
    page.selectbox(key="checkpoint").set_value("shipped:small").run()
    page.text_area(key="corpus text").set_value("my own text")
    page.slider(key="corpus tokens").set_value(1500)
    next(button for button in page.button if button.label == "Run").click().run()
    assert not page.exception and not page.error
    page.checkbox(key="here").set_value(False).run()
    assert not page.text_area
    page.checkbox(key="here").set_value(True).run()
    assert page.text_area(key="corpus text").value == "my own text"
    assert page.slider(key="corpus tokens").value == 1500


def test_the_zip_holds_the_result_and_nothing_else_that_is_or_is_linked_there(results, tmp_path):
    folder = shutil.copytree(results / "one", tmp_path / "one")
    (tmp_path / "secret.parquet").write_text("secret")
    (folder / "summary" / "rules.parquet").symlink_to(tmp_path / "secret.parquet")
    (folder / "summary" / "link.parquet").symlink_to(tmp_path / "secret.parquet")
    (folder / "summary" / "notes.txt").write_text("mine")
    (folder / "summary" / "inner").mkdir()
    with zipfile.ZipFile(io.BytesIO(_zipped(folder))) as archive:
        found = {*archive.namelist()}
        archive.extractall(tmp_path / "again")
    tables = {f"summary/{name}.parquet" for name in ("measures", "documents", "examples", "excerpts")}
    assert found == {"corpus.json", "summary/summary.json", *tables}
    assert Summary.read(tmp_path / "again").measures.equals(Summary.read(results / "one").measures)


def test_files_to_take_away_hold_what_is_shown(page, results):
    first, second = (Summary.read(results / name) for name in ("one", "other"))
    found = corpus_report(first, second, names=("one", "<b>other</b>"))
    assert "default-src 'none'" in found
    assert "&lt;b&gt;other&lt;/b&gt;" in found and "<b>other" not in found
    row = first.of("share", 1, "kind").iloc[0]
    assert f"{row['value']:.1%}" in found
    assert "词元" in found and "Which kinds of tokens are dropped?" in found
    assert [button.label for button in page.get("download_button")] == [
        "Report that opens offline (HTML)", "All numbers (CSV)", "The result without its shards (ZIP)",
    ]  # fmt: skip


def test_the_report_says_what_the_page_says(results):
    summary = Summary.read(results / "one")
    rules = pd.DataFrame([dict(
        rule="even", own_weights=False, loss=2.125, difference=0.25, low=0.125, high=0.375, marked=True, agreement=0.5,
        tokens=4321, documents=32,
    )])  # fmt: skip
    run = replace(
        summary.run, complete=False, skipped=1, skipped_documents=[Skipped("empty <i>", "it is empty")],
        sources=[f"file {number}" for number in range(3000)],
    )  # fmt: skip
    found = corpus_report(replace(summary, run=run, rules=rules))
    assert "stopped before its end" in found
    assert "empty &lt;i&gt;" in found and "it is empty" in found
    assert "file 2" in found and "file 3" not in found and "3,000 sources in all" in found
    assert "2.125" in found and "4,321" in found
    worst = summary.documents.iloc[0]
    assert worst["name"] in found and f"{worst['share']:.1%}" in found
    reached = summary.of("entropy", 2).iloc[0]["tokens"]
    assert reached < summary.about.tokens and f"{reached:,}" in found
    differences = corpus_report(summary, Summary.read(results / "other"))
    assert "Number of tokens" in differences[: differences.index("</table>")]


def test_a_visit_with_too_few_tokens_gets_a_sentence_for_a_form(results, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(results))
    monkeypatch.setenv("SUBLLM_HOURLY_TOKENS", "400")
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception and not app.slider
    assert any("fewer than 500 tokens" in each.value for each in app.info)


def test_every_group_of_tokens_can_be_chosen():
    made = {group.name for group in groups(np.ones(5), 2048)} - {"all"}
    assert made | {"source"} == set(parts._GROUPS)


def test_a_document_that_was_left_out_has_the_name_that_the_visitor_gave_it(results):
    summary = Summary.read(results / "one")
    run = replace(summary.run, skipped=1, skipped_documents=[Skipped("elsewhere/3.jsonl:1", "it is empty")])
    (left_out,) = replace(summary, run=run).renamed({"elsewhere/3.jsonl": "4"}).run.skipped_documents
    assert left_out.name == "4"


def test_more_sources_than_shares_are_divided_by_are_said(tmp_path, monkeypatch):
    run = simulate(tmp_path / "many", 30, 40)
    for path in run.paths(tmp_path / "many", DOCUMENTS):
        table = pq.read_table(path)
        names = pa.array([f"source {number}" for number in table["document"].to_pylist()])
        place = table.column_names.index("source")
        pq.write_table(table.set_column(place, table.schema.field("source"), names), path)
    aggregate(tmp_path / "many")
    assert Summary.read(tmp_path / "many").about.many_sources
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    monkeypatch.setattr("app.settings._CORPUS", tmp_path / "none")
    app = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not app.exception
    assert any("more than 20 of them" in each.value for each in app.caption)


@pytest.mark.parametrize("part", ["kept", "paths", "scores", "types", "documents"])
def test_numbers_of_every_part_can_be_sorted(page, part):
    _open(page, part)
    for frame in page.dataframe:
        for name in frame.value.columns.intersection([*map(say, ("corpus_value", "corpus_auc", "corpus_correlation"))]):
            assert frame.value[name].dtype == float, name
            assert frame.proto.arrow_data.styler.display_values, "in their format"


def test_the_name_of_a_line_stands_beside_the_bars(results):
    rows = Summary.read(results / "one").of("share", 1, "kind")
    figure = figures.shares(rows, rows["cell"].tolist(), 0.5, table("en"))
    (name,) = figure.layout.annotations
    assert (name.x, name.xanchor) == (1, "left") and figure.layout.margin.r > 60


def test_a_result_in_which_nothing_was_tested_says_so(results):
    summary = Summary.read(results / "one")
    for language, none in (("en", "Nothing was tested"), ("zh", "未作任何检验")):
        words = table(language)
        assert f"{summary.about.tests:,}" in corpus_tables.intervals(summary, words)
        untested = replace(summary, about=replace(summary.about, tests=0))
        assert none in corpus_tables.intervals(untested, words) and none in corpus_report(untested, language=language)


def test_what_half_of_the_documents_means_is_said_with_their_number(results):
    summary = Summary.read(results / "one")
    for language, said, number in (("en", "at least 64 tokens", "30 of 30."), ("zh", "至少有 64 个词元", "有 30 个。")):
        spread = corpus_tables.document_spread(summary, 1, table(language))
        assert said in spread and spread.endswith(number)
        older = replace(summary, about=replace(summary.about, long_documents={}))  # which does not know it
        assert spread.startswith(corpus_tables.document_spread(older, 1, table(language)))
        assert not corpus_tables.document_spread(older, 1, table(language)).endswith(number)


def test_a_band_of_frequency_ends_where_the_next_one_begins():
    names = [figures.cell_name("frequency", cell, table("en")) for cell in FREQUENCIES]
    assert names[0] == "10,000 per million or more" and names[-1] == "fewer than 10 per million"
    numbers = [[int(n.replace(",", "")) for n in re.findall(r"[\d,]+", name)] for name in names]
    assert numbers == [[first, *([10 * first - 1] if first < BANDS[0] else [])] for first in BANDS] + [[BANDS[-1]]]
    for language in LANGUAGES:
        own = [figures.cell_name("frequency", cell, table(language)) for cell in FREQUENCIES]
        assert all(name != cell and re.findall(r"[\d,]+", name) for name, cell in zip(own, FREQUENCIES, strict=True))
