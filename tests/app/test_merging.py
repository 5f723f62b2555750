"""Pages on a checkpoint whose levels merge tokens: nothing is chosen there, and nothing offers it."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.messages import plain
from app.strings import table
from tests.app.scripts import script
from tests.conftest import byte_tokenizer, tiny_model

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
DEBUG = script("debug")
TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture(params=["stride", ["subllm", "stride"]], ids=str)
def merging(request, tmp_path, monkeypatch):
    """A checkpoint named "merging", whose second level merges."""
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    tiny_model("T(T)T(TT)T", router=request.param, retention_ratio=0.5, **fields).save_pretrained(tmp_path / "merging")
    tokenizer.save_pretrained(tmp_path / "merging")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))


def linked(script, **query):
    page = AppTest.from_string(script, default_timeout=120)
    page.query_params.update({"v": "2", "checkpoint": "merging", "prompt": TEXT, "level": "2", **query})
    page.run()
    assert not page.exception
    return page


def button(page, label):
    return next(each for each in page.button if label in each.label)


def test_a_run_is_explored(merging):
    page = AppTest.from_file(MAIN, default_timeout=120)
    page.query_params.update({"v": "2", "checkpoint": "merging", "prompt": TEXT, "level": "2"})
    page.run()
    assert not page.exception and not page.error
    assert "Level 2 merges to" in {metric.label for metric in page.metric}


def test_no_token_is_kept_or_dropped_by_hand_and_no_decision_is_searched(merging):
    page = linked(DEBUG)
    assert not page.error
    said = " ".join(caption.value for caption in page.caption)
    for name in ("whatif_merging", "search_merging"):
        assert plain(table("en")[name].partition("}")[2]) in said, name
    assert button(page, "Keep").disabled and button(page, "Drop").disabled
    assert not any("decisions" in each.label for each in page.button)
    page = linked(DEBUG, edits="bypass 0.5@2;dense@2")
    assert not page.error
    page = linked(DEBUG, edits="drop 2-4@2")
    assert "router merges tokens" in page.error[0].value


def test_a_token_merged_at_an_outer_level_is_called_so_and_nothing_offers_to_keep_it(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    model = tiny_model("T(T(T)T)T", router=["stride", "subllm"], retention_ratio=0.5, **fields)
    model.save_pretrained(tmp_path / "merging")
    tokenizer.save_pretrained(tmp_path / "merging")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = linked(DEBUG, edits="keep 3@2")
    assert not page.error
    (warning,) = page.warning
    assert warning.value == plain(table("en")["edit_absent_merging"].format(tokens="3"))
    assert table("en")["edit_reach"] not in [each.label for each in page.button]


def test_text_is_written_and_taken_back(merging):
    page = linked(DEBUG)
    page.session_state["debug"] = "Step by step"
    page.run()
    assert not page.exception and not page.error
    for label, count in (("One token", 1), ("One token", 2), ("Step back", 1), ("One token", 2)):
        button(page, label).click().run()
        assert not page.exception and not page.error
        assert len(page.session_state["session"].found["texts"][1][0].tokens) == count
