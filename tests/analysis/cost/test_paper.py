"""The paper's figures: what the prediction can and cannot explain."""

import pytest

from analysis.cost.hardware import load_hardware
from analysis.cost.paper import batch_that_saves, paper_config, paper_rows
from analysis.cost.sizes import parameters


def test_the_assumed_model_has_the_size_and_the_share_of_tokens_that_the_paper_states():
    config = paper_config()
    assert parameters(config) == pytest.approx(1.3e9, rel=0.05)
    structure = config.parsed_structure
    assert (structure.num_blocks, structure.num_levels) == (24, 2)


def test_predictions_lie_where_the_note_on_the_page_says():
    (a100,) = [row for row in load_hardware() if row.name == "NVIDIA A100 SXM 80 GB"]
    for row in paper_rows(a100):
        if row.what == "training":
            assert row.reported < row.predicted["training"] < row.reported + 0.12
        elif row.tokens == 4096:
            assert min(row.predicted.values()) < row.reported < 1.05 * max(row.predicted.values())
        else:
            assert row.reported > max(row.predicted.values())


def test_both_memory_figures_fit_about_the_same_batch():
    assert batch_that_saves("training") == pytest.approx(5, rel=0.15)
    assert batch_that_saves("inference") == pytest.approx(5, rel=0.15)
