"""Tables for other programs: the recorded numbers, with the columns that the documentation names."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.report import tables
from tests.analysis.trace.test_trace import PARTS, make_trace
from tests.architecture import ROOT


def rows_of(data):
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def test_a_row_for_each_token_holds_what_was_recorded():
    trace = make_trace(tokens=20, seed=1)
    found = pd.read_parquet(io.BytesIO(tables.parquet(tables.token_table(trace))))
    routing = trace.routing
    assert (
        found["text"].tolist() == trace.prompt.pieces.tolist()
        and found["id"].tolist() == trace.prompt.token_ids.tolist()
    )
    for level in routing.levels:
        for name, values in (("reached", routing.reached), ("kept", routing.kept), ("edited", routing.edited)):
            assert found[f"{name}_{level}"].tolist() == values[level - 1].tolist()
        for name, values in (
            ("score", routing.scores), ("weight", routing.weights), ("contribution", routing.contribution_share)
        ):  # fmt: skip
            np.testing.assert_array_equal(found[f"{name}_{level}"], values[level - 1])
    np.testing.assert_array_equal(found["surprisal"], trace.likelihood.surprisal)
    np.testing.assert_array_equal(found["divergence"], trace.agreement.divergence)
    assert {"surprisal", "divergence"}.isdisjoint(tables.token_table(make_trace(parts=())).columns)


def test_a_row_for_each_level_counts_its_tokens():
    trace = make_trace(tokens=40, seed=1)
    found, routing = tables.level_table(trace), trace.routing
    assert found["kept"].tolist() == routing.kept.sum(1).tolist()
    assert found["reached"].tolist() == routing.reached.sum(1).tolist()
    expected = [routing.weights[row][routing.reached[row]].mean() for row in range(3)]
    np.testing.assert_allclose(found["mean_weight"], expected)
    assert tables.level_table(make_trace("TT")).empty


@pytest.mark.parametrize("text", ["=1+1", "@x", "+a", "-2", "a,b", 'a"b', "a\nb", "\t=x", "你🦙"])
def test_a_token_in_csv_is_text_and_comes_back(text):
    trace = make_trace(tokens=3)
    table = tables.token_table(trace).assign(text=[text, "a", "b"])
    (first, *_) = rows_of(tables.csv(table))
    assert first["text"].startswith('"') and json.loads(first["text"]) == text
    assert not any(value.startswith(("=", "@", "+")) for value in first.values())


def test_no_text_in_csv_is_a_formula():
    trace = make_trace(tokens=20, seed=1)
    routers = np.asarray(["=1+1", "@x", "even"])
    trace = replace(trace, routing=replace(trace.routing, routers=routers))
    assert [row["router"] for row in rows_of(tables.csv(tables.level_table(trace)))] == ["'=1+1", "'@x", "even"]


def test_numbers_in_csv_are_exact_and_missing_ones_empty():
    trace = make_trace(tokens=20, seed=1)
    rows = rows_of(tables.csv(tables.token_table(trace)))
    for row, score in zip(rows, trace.routing.scores[2], strict=True):
        assert row["score_3"] == "" if np.isnan(score) else score.dtype.type(row["score_3"]) == score


def test_every_column_is_documented():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = re.search(r"\n## Tables.*?(?=\n## )", text, re.S)[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)}
    trace = make_trace(parts=PARTS)
    used = {re.sub(r"_[1-9]$", "_N", name) for name in tables.token_table(trace).columns}
    assert named == used | {*tables.level_table(trace).columns}
