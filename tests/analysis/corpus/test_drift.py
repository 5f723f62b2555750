"""Two results next to each other."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.corpus.aggregate import aggregate
from analysis.corpus.drift import drift
from analysis.corpus.schema import TOKENS, CorpusRun
from analysis.corpus.summary import Summary
from analysis.errors import CorpusError
from tests.analysis.corpus.simulated import simulate


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    found = {}
    for name, seed in (("one", 0), ("other", 1)):
        folder = tmp_path_factory.mktemp(name)
        simulate(folder, 40, 100, seed=seed)
        aggregate(folder)
        found[name] = Summary.read(folder)
    return found


def test_texts_of_one_kind_hardly_differ(summaries):
    found = drift(summaries["one"], summaries["other"])
    shares = found[found["measure"] == "share"]
    assert len(shares) > 50
    assert shares["marked"].mean() < 0.05
    inside = (shares["low"] <= 0) & (shares["high"] >= 0)
    assert inside.mean() > 0.85


def test_a_result_does_not_differ_from_itself(summaries):
    found = drift(summaries["one"], summaries["one"])
    assert not found["marked"].any()
    assert (found["difference"] == 0).all()


def test_checkpoints_over_the_same_documents_are_compared_as_pairs(tmp_path, summaries):
    """Every document keeps a little more: less than documents differ, and yet it is seen."""
    simulate(tmp_path, 40, 100, seed=0)
    run = CorpusRun.read(tmp_path)
    for path in run.paths(tmp_path, TOKENS):
        table = pq.read_table(path)
        kept = table["kept"].to_numpy().copy()
        kept[::50] |= 1  # the same two places of every document
        pq.write_table(table.set_column(3, table.schema.field("kept"), [kept]), path)
    aggregate(tmp_path)
    more = Summary.read(tmp_path)
    row = drift(summaries["one"], more).query("group == 'all' and level == 1").iloc[0]
    alone = summaries["one"].of("share", 1, "all").iloc[0]
    assert row["marked"]
    assert row["difference"] == pytest.approx(0.011, abs=0.004)
    assert row["high"] - row["low"] < (alone["high"] - alone["low"]) / 2


def test_results_without_a_level_in_common_say_so(summaries):
    one = summaries["one"]
    nothing = Summary(
        one.run, type(one.about)(**(vars(one.about) | {"levels": []})), one.measures, one.documents, one.examples,
        one.excerpts, one.rules,
    )  # fmt: skip
    with pytest.raises(CorpusError, match="no level in common"):
        drift(one, nothing)


def test_what_is_not_known_comes_last_and_is_not_marked(tmp_path, summaries):
    """A cell of three tokens, all kept here and all dropped there."""
    one = summaries["one"]
    rows = {}
    for name, value in (("first", 1.0), ("second", 0.0)):
        row = one.of("share", 1, "all").iloc[0].to_dict()
        row |= {"group": "kind", "cell": "rare", "value": value, "error": 0.0, "tokens": 3, "documents": 3}
        row["resampled"] = np.zeros(200, dtype=np.float16)
        rows[name] = replace(one, measures=pd.concat([one.measures, pd.DataFrame([row])], ignore_index=True))
    found = drift(rows["first"], rows["second"])
    row = found[found["cell"] == "rare"].iloc[0]
    assert row["difference"] == -1 and np.isnan(row["chance"]) and not row["marked"]
    size = (found["difference"] / found["error"].where(found["error"] > 0)).abs()
    assert size.dropna().is_monotonic_decreasing
    assert size[size.isna()].index.min() > size.dropna().index.max()


def test_differences_of_rare_decisions_have_the_errors_of_both(summaries):
    """The digits are never kept in either, which no resample could show."""
    row = (
        drift(summaries["one"], summaries["other"]).query("group == 'kind' and cell == 'digit' and level == 1").iloc[0]
    )
    assert row["difference"] == 0 and row["low"] < 0 < row["high"]
