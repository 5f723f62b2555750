"""The second pass, against pandas, scipy and scikit-learn over the same tokens."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from analysis.corpus.aggregate import aggregate
from analysis.corpus.association import Association, columns_of
from analysis.corpus.cells import COLUMNS
from analysis.corpus.schema import DOCUMENTS, TOKENS, CorpusRun
from analysis.corpus.shards import read_shards
from analysis.corpus.statistics import mixed, resample_weights
from analysis.corpus.summary import MEASURES, Summary
from analysis.errors import CorpusError
from tests.analysis.corpus.simulated import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    simulate(folder, 60, 150)
    aggregate(folder)
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return Summary.read(folder)


@pytest.fixture(scope="module")
def tokens(folder):
    run = CorpusRun.read(folder)
    table = pd.concat([pq.read_table(path).to_pandas() for path in run.paths(folder, TOKENS)], ignore_index=True)
    table["kept_1"], table["kept_2"] = run.kept(table["kept"].to_numpy())
    return table


def _value(summary, measure, level, group, cell):
    rows = summary.of(measure, level, group)
    return rows.set_index("cell").loc[cell]


def test_shares_are_those_of_the_tokens_that_reached_the_level(summary, tokens):
    words = tokens[tokens["kind"] == 0]
    row = _value(summary, "share", 1, "kind", "beginning")
    assert row["value"] == pytest.approx(words["kept_1"].mean())
    assert (row["tokens"], row["documents"]) == (len(words), 60)
    assert row["difference"] == pytest.approx(words["kept_1"].mean() - tokens[tokens["kind"] == 2]["kept_1"].mean())
    assert row["marked"]
    inside = tokens[tokens["kept_1"]]
    row = _value(summary, "share", 2, "place", "64-255")
    assert row["value"] == pytest.approx(inside[inside["position"] >= 64]["kept_2"].mean())
    assert row["low"] < row["value"] < row["high"]
    frequent = inside["id"].map(tokens["id"].value_counts()) * 1e6 / len(tokens) >= 10_000
    assert _value(summary, "share", 2, "frequency", "10000")["value"] == pytest.approx(
        inside[frequent]["kept_2"].mean()
    )


def test_few_of_the_groups_that_decide_nothing_are_marked(summary):
    places = summary.measures[summary.measures["group"].isin(["place", "decile", "source"])]
    assert places["marked"].mean() < 0.1
    assert len(places) > 30


def test_paths_are_shares_of_all_tokens(summary, tokens):
    rows = summary.of("path", 0)
    assert rows["value"].sum() == pytest.approx(1)
    assert _value(summary, "path", 0, "path", "1 2")["value"] == pytest.approx(tokens["kept_2"].mean())
    assert _value(summary, "path", 0, "path", "0")["value"] == pytest.approx((tokens["kept"] == 0).mean())


def test_shares_of_paths_are_of_all_tokens_also_where_there_are_more_than_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.corpus.paths.MOST_PATHS", 2)  # of three
    simulate(tmp_path, 25, 100)
    aggregate(tmp_path)
    found = Summary.read(tmp_path)
    rows = found.of("path", 0)
    assert len(rows) == 2 and rows["tokens"].sum() < found.about.tokens
    np.testing.assert_allclose(rows["value"], rows["tokens"] / found.about.tokens)
    assert (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()
    assert all(len(found.examples_of("path", cell, 0)) for cell in rows["cell"])

    path, share = tmp_path / "summary" / "measures.parquet", rows["tokens"].sum() / found.about.tokens
    table = pq.read_table(path).to_pandas()  # as older versions wrote it
    own, numbers = table["measure"] == "path", ["value", "low", "high", "error"]
    table.loc[own, numbers] /= share
    table.loc[own, "resampled"] = table.loc[own, "resampled"].map(lambda each: each / share)
    pq.write_table(pa.Table.from_pandas(table, MEASURES, preserve_index=False), path)
    again = Summary.read(tmp_path).of("path", 0)
    np.testing.assert_allclose(again[numbers], rows[numbers])
    np.testing.assert_allclose(np.stack(again["resampled"]), np.stack(rows["resampled"]), rtol=2e-3)


def test_entropies_tell_a_level_that_decides_by_type_from_one_that_decides_by_context(summary):
    assert _value(summary, "entropy", 2, "entropy", "explained")["value"] == pytest.approx(1)
    context = _value(summary, "entropy", 1, "entropy", "explained")
    assert 0.05 < context["value"] < 0.2  # digits are never kept
    assert context["low"] < context["value"] < context["high"]


def test_correlations_are_spearmans_and_auc_is_scikit_learns(summary, tokens):
    known = tokens[tokens["position"] > 0]
    for name in ("surprisal", "entropy", "norm"):
        column = "norm_1" if name == "norm" else name
        row = _value(summary, "correlation", 1, "correlation", name)
        assert row["value"] == pytest.approx(stats.spearmanr(known["score_1"], known[column]).statistic, abs=1e-9)
        auc = roc_auc_score(known["kept_1"], known[column].astype(float))
        assert _value(summary, "auc", 1, "auc", name)["value"] == pytest.approx(auc, abs=1e-9)
    assert _value(summary, "correlation", 1, "correlation", "surprisal")["marked"]
    assert not _value(summary, "correlation", 1, "correlation", "norm")["marked"]


def test_resampled_correlations_have_ranks_of_their_own(summary, tokens, folder):
    documents = pd.concat([pq.read_table(path).to_pandas() for path in CorpusRun.read(folder).paths(folder, DOCUMENTS)])
    keys = mixed(np.array([int(digest[:16], 16) for digest in documents["digest"]], dtype=np.uint64))
    known = tokens[tokens["position"] > 0]
    times = resample_weights(keys).astype(int)[known["document"].to_numpy()]
    for name in ("surprisal", "frequency"):
        values = known["id"].map(tokens["id"].value_counts()) if name == "frequency" else known[name]
        pairs = np.stack([known["score_1"], values])
        again = [stats.spearmanr(*np.repeat(pairs, each, axis=1)).statistic for each in times[:, :60].T]
        row = _value(summary, "correlation", 1, "correlation", name)
        deviations = row["resampled"][:60].astype(float)
        assert np.std(deviations) == pytest.approx(np.std(again), rel=0.04)
        assert np.corrcoef(deviations, again)[0, 1] > 0.99


def test_a_column_without_a_value_takes_no_token_from_the_others(tmp_path):
    """Attention that could not be measured, as results of earlier versions have it."""
    run = simulate(tmp_path, 20, 40)
    replace(run, options=replace(run.options, attention=True)).write(tmp_path)
    for path in run.paths(tmp_path, TOKENS):
        table = pq.read_table(path)
        pq.write_table(table.append_column("attention", pa.array(np.full(len(table), np.nan, dtype=np.float16))), path)
    aggregate(tmp_path)
    cells = Summary.read(tmp_path).of("auc", 1)["cell"].tolist()
    assert "surprisal" in cells and "attention" not in cells


def test_places_and_frequencies_are_ranked_without_rounding(tmp_path):
    run = simulate(tmp_path, 4, 3000, texts=False)
    run = replace(run, options=replace(run.options, window=4096))
    run.write(tmp_path)
    aggregate(tmp_path)
    known = pd.concat([pq.read_table(path).to_pandas() for path in run.paths(tmp_path, TOKENS)], ignore_index=True)
    counts = known["id"].map(known["id"].value_counts())
    known, counts = known[known["position"] > 0], counts[known["position"] > 0]
    for name, values in (("place", known["position"]), ("frequency", counts)):
        row = _value(Summary.read(tmp_path), "correlation", 1, "correlation", name)
        assert row["value"] == pytest.approx(stats.spearmanr(known["score_1"], values).statistic, abs=1e-12)

    tokens = next(read_shards(run, tmp_path, [*COLUMNS, *columns_of(run)]))
    frequencies = np.full(run.vocabulary, 10_040)
    frequencies[::2] = 10_000
    association = Association(run, 1, frequencies, [])
    association.rank(tokens)
    association.ranked()
    fifths = next(group for group in association.fifths() if group.name == "fifth frequency").codes(tokens)
    even = tokens.columns["id"] % 2 == 0
    assert not {*fifths[even].tolist()} & {*fifths[~even].tolist()} - {5}  # 5 is none


def test_entropies_of_few_documents_have_no_interval_and_those_of_more_stay_possible(tmp_path):
    for documents in (9, 12):
        simulate(tmp_path / str(documents), documents, 150)
        aggregate(tmp_path / str(documents))
        rows = Summary.read(tmp_path / str(documents)).measures.query("measure == 'entropy'")
        assert rows["low"].notna().all() == (documents == 12)
    assert (rows["low"] >= np.minimum(rows["value"], 0)).all()
    shares = rows[rows["cell"] == "explained"]
    assert (shares["high"] <= np.maximum(shares["value"], 1)).all()


def test_partial_correlations_are_those_of_rests_after_type_and_place(summary, tokens):
    known = tokens[tokens["position"] > 0]
    columns = known[["score_1", "surprisal", "position"]].astype(float).rank()
    inner = columns - columns.groupby(known["id"]).transform("mean")
    place = inner[["position"]]
    rests = [inner[name] - LinearRegression(fit_intercept=False).fit(place, inner[name]).predict(place)
             for name in ("score_1", "surprisal")]  # fmt: skip
    row = _value(summary, "partial", 1, "partial", "surprisal")
    assert row["value"] == pytest.approx(np.corrcoef(*rests)[0, 1], abs=1e-6)
    assert "frequency" not in summary.of("partial", 1)["cell"].tolist()  # the type says it already
    assert "surprisal" not in summary.of("partial", 2)["cell"].tolist()  # the type says all of this score


def test_fifths_of_a_number_that_decides_rise(summary):
    shares = summary.of("share", 1, "fifth surprisal")["value"].tolist()
    assert shares == sorted(shares)
    assert len(shares) == 5


def test_types_that_flip_are_those_that_a_level_both_keeps_and_drops(summary, tokens):
    flipping = summary.of("share", 1, "type 1")
    assert not any(int(cell) % 10 == 3 for cell in flipping["cell"])  # digits are never kept
    row = flipping.iloc[0]
    own = tokens[tokens["id"] == int(row["cell"])]
    assert row["value"] == pytest.approx(own["kept_1"].mean())
    assert summary.type_names()[row["cell"]] == f" w{int(row['cell']):03d}"
    assert not len(summary.of("share", 2, "type 2"))  # its decisions never depend on the context


def test_every_cell_has_examples_that_are_of_it(summary, tokens):
    rows = summary.measures[summary.measures["measure"] == "share"]
    for level, group, cell, share, count in rows[["level", "group", "cell", "value", "tokens"]].itertuples(index=False):
        found = summary.examples_of(group, cell, level)
        assert 1 <= len(found) <= 20
        assert found["kept"].any() == (share > 0), (group, cell)
        assert count < 20 or not found.duplicated(["excerpt", "token", "level"]).any()
    for _, kept, excerpt, token in summary.examples_of("kind", "digit", 1)[
        ["level", "kept", "excerpt", "token"]
    ].values:
        trace = summary.trace(int(excerpt))
        assert trace.prompt.token_ids[token] % 10 == 3
        assert trace.routing.kept[0, token] == kept
        assert trace.prompt.pieces[token] == f" w{trace.prompt.token_ids[token]:03d}"


def test_excerpts_are_traces_of_what_the_shards_say(summary, tokens):
    trace = summary.trace(3)
    row = summary.excerpts.slice(3, 1).to_pylist()[0]
    first = tokens[(tokens["document"] == row["document"]) & (tokens["position"] == row["position"])].index[0]
    own = tokens.iloc[first : first + trace.num_tokens]
    assert trace.prompt.token_ids.tolist() == own["id"].tolist()
    assert trace.routing.kept.tolist() == own[["kept_1", "kept_2"]].to_numpy().T.tolist()
    np.testing.assert_array_equal(trace.routing.scores[1], own["score_2"].astype(np.float32))
    assert trace.prompt.text == "".join(trace.prompt.pieces)


def test_worst_documents_are_those_with_the_smallest_share(summary, tokens):
    shares = tokens.groupby("document")["kept_1"].mean()
    rows = summary.documents[summary.documents["level"] == 1]
    assert rows["share"].tolist() == pytest.approx(shares.sort_values().head(20).tolist())
    assert summary.about.quantiles["1"][2] == pytest.approx(shares.median(), abs=0.01)


def test_quantiles_are_of_the_documents_of_which_enough_tokens_reach_a_level(folder, summary, tokens):
    reached = tokens.groupby("document")["kept_1"].sum()
    assert summary.about.long_documents == {"1": 60, "2": int((reached >= 64).sum())}
    assert 0 < summary.about.long_documents["2"] < 60


def test_the_same_shards_give_the_same_bytes(folder, tmp_path, summary):
    simulate(tmp_path, 60, 150)
    again = CorpusRun.read(tmp_path)
    aggregate(tmp_path)
    for name in ("measures", "documents", "examples", "excerpts"):
        one, two = (place / "summary" / f"{name}.parquet" for place in (folder, tmp_path))
        assert one.read_bytes() == two.read_bytes()
    assert again.tokens == summary.about.tokens


def test_without_texts_there_are_numbers_and_no_excerpt(tmp_path):
    simulate(tmp_path, 6, 40, texts=False)
    aggregate(tmp_path)
    found = Summary.read(tmp_path)
    assert len(found.measures) > 100
    assert not len(found.examples)
    assert not len(found.excerpts)
    assert found.type_names() == {}


def test_one_document_has_shares_without_intervals(tmp_path):
    simulate(tmp_path, 1, 60)
    aggregate(tmp_path)
    measures = Summary.read(tmp_path).measures
    assert measures["low"].isna().all()
    assert not measures["marked"].any()


def test_a_result_without_tokens_or_with_a_damaged_shard_says_so(tmp_path):
    run = simulate(tmp_path / "empty", 0)
    with pytest.raises(CorpusError, match="no tokens"):
        aggregate(tmp_path / "empty")
    run = simulate(tmp_path / "cut", 20, 40)
    path = next(run.paths(tmp_path / "cut"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"tokens/00000\.parquet cannot be read"):
        aggregate(tmp_path / "cut")
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be read"):
        aggregate(tmp_path / "cut")


def test_a_summary_that_is_missing_damaged_or_old_says_so(tmp_path):
    simulate(tmp_path, 3, 40)
    with pytest.raises(CorpusError, match="no summary"):
        Summary.read(tmp_path)
    aggregate(tmp_path)
    about = tmp_path / "summary" / "summary.json"
    text = about.read_text()
    about.write_text(text.replace('"format": 2', '"format": 7'))
    with pytest.raises(CorpusError, match="format 7"):
        Summary.read(tmp_path)
    about.write_text(text[:-20])
    with pytest.raises(CorpusError, match="cannot be read"):
        Summary.read(tmp_path)
    about.write_text(text.replace("0" * 64, "1" * 64))
    with pytest.raises(CorpusError, match="another checkpoint"):
        Summary.read(tmp_path)
