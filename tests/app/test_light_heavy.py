"""Pages on a checkpoint with light and heavy branches: each of the three choices of a block is a level like others."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app.scripts import script
from tests.conftest import byte_tokenizer, tiny_model

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
PAGES = {name: script(name) for name in ("explore", "debug", "efficiency")}
TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture
def divided(tmp_path, monkeypatch):
    """A checkpoint named "divided", with four levels: queries, keys and values, MLP, and a bracket pair."""
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 512}
    tiny_model("TC(T)T", window=8, **fields).save_pretrained(tmp_path / "divided")
    tokenizer.save_pretrained(tmp_path / "divided")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))


def opened(code, **query):
    page = AppTest.from_string(code, default_timeout=120)
    page.query_params.update({"v": "2", "checkpoint": "divided", "prompt": TEXT, **query})
    page.run()
    assert not page.exception and not page.error, [each.value for each in (*page.exception, *page.error)]
    return page


@pytest.mark.parametrize("level", ["1", "2", "3", "4"])
@pytest.mark.parametrize("name", ["explore", "debug"])
def test_every_level_opens(divided, name, level):
    opened(PAGES[name], level=level, token="3")


def test_costs_open_in_chinese(divided):
    opened(PAGES["efficiency"], lang="zh")


@pytest.mark.parametrize("edits", ["drop 2-4@1", "keep 3@2", "threshold 0.5@3", "dense@*", "retention 0.5@2"])
def test_choices_of_a_block_can_be_edited(divided, edits):
    opened(PAGES["debug"], edits=edits)
