"""Shares of cells, the rare ones too: what the intervals and marks promise holds where nothing differs."""

import numpy as np
import pyarrow as pa

from analysis.corpus.cells import Group
from analysis.corpus.shards import Tokens
from analysis.corpus.statistics import mixed
from analysis.corpus.tally import Tally
from tests.analysis.corpus.simulated import simulate


def tallies(run, codes, kept, local, cells):
    """Of cells, and of all tokens."""
    documents = int(local.max()) + 1
    keys = mixed(np.arange(documents, dtype=np.uint64) + np.uint64(7919 * int(kept.sum())))
    tokens = Tokens(run, 0, {}, pa.table({}), local, keys)
    found = []
    for codes_of, size in ((codes, cells), (np.zeros_like(codes), 1)):
        tally = Tally(Group("cells", tuple(map(str, range(size))), lambda tokens: tokens.local))
        tally.add(tokens, codes_of, np.ones(len(codes), dtype=np.bool_), kept)
        found.append(tally)
    return found


def by_chance(run, seed, share):
    """300 cells of 3 to 3,000 tokens in bursts, over documents that differ, and whose cells decide nothing."""
    rng, documents, cells = np.random.default_rng(seed), 300, 300
    local = np.repeat(np.arange(documents), 150)
    kept = rng.random(len(local)) < rng.beta(8 * share, 8 * (1 - share), documents)[local]
    sizes = np.append(np.geomspace(3, 3000, cells - 1), len(local))
    codes = rng.choice(cells, size=len(local), p=sizes / sizes.sum())
    codes = np.where(rng.random(len(local)) < 0.5, np.roll(codes, 1), codes)
    return tallies(run, codes, kept, local, cells)


def test_rare_cells_that_decide_nothing_are_no_surprise(tmp_path):
    run, chances, rare, hits = simulate(tmp_path, 0), [], [], []
    for seed, share in enumerate([0.5, 0.9, 0.9, 0.98]):
        tally, whole = by_chance(run, seed, share)
        found = tally.shares()
        several = tally.documents > 1
        hits.append(((found.low <= share) & (share <= found.high))[several])
        chances.append(tally.apart(whole).chances)
        rare.append(tally.documents < 20)
    chance = np.concatenate(chances)
    assert np.isnan(chance[np.concatenate(rare)]).all()
    tested = chance[np.isfinite(chance)]
    assert len(tested) > 300
    assert (tested < 0.001).mean() < 0.01 and (tested < 0.05).mean() < 0.08
    assert np.concatenate(hits).mean() > 0.92


def test_three_documents_that_share_a_decision_say_little(tmp_path):
    local = np.repeat(np.arange(40), 50)
    kept = np.arange(len(local)) % 2 == 0
    codes = np.zeros(len(local), dtype=np.int64)
    codes[[0, 50, 100]] = 1
    tally, whole = tallies(simulate(tmp_path, 0), codes, kept, local, 2)
    found = tally.shares()
    assert found.values[1] == 1 and found.high[1] == 1
    assert 0.4 < found.low[1] < 0.5  # Wilson's interval of 3 of 3
    assert np.isnan(tally.apart(whole).chances[1])


def test_a_cell_that_is_never_kept_in_many_documents_is_seen(tmp_path):
    rng = np.random.default_rng(0)
    local = np.repeat(np.arange(60), 50)
    codes = (np.arange(len(local)) % 5 == 0).astype(np.int64)
    tally, whole = tallies(simulate(tmp_path, 0), codes, (rng.random(len(local)) < 0.5) & (codes == 0), local, 2)
    assert tally.apart(whole).chances[1] < 1e-4
    assert 0.04 < tally.shares().high[1] < 0.08  # of 60 documents, as if each were one observation
