"""Pages on a checkpoint with light and heavy branches: each of the three choices of a block is a level like others."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.strings import say, table
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


def button(page, label):
    return next(each for each in page.button if label in each.label)


def test_what_went_past_the_heavy_branches_is_told_apart_and_drawn(divided):
    page = AppTest.from_string(PAGES["debug"], default_timeout=120)
    page.query_params.update({"v": "2", "checkpoint": "divided", "prompt": TEXT, "selected": "12"})
    page.session_state["debug"] = say("tab_why")
    page.run()
    page.selectbox(key="why method").set_value("conductance")
    page.slider(key="why steps").set_value(64)
    button(page, say("why_run")).click().run()
    assert not page.exception and not page.error
    everything_else = table("en")["figure_unchanged_dropped_heavy"]
    (past,) = (each.value for each in page.table if everything_else in " ".join(each.value.columns))
    assert [*past.index] == ["Block 1 · queries", "Block 1 · MLP", "Level 4"], "keys and values add nothing"
    found = page.session_state["session"].found["attribution"][1][2]
    for row in past.astype(float).sum(axis=1):
        assert row == pytest.approx(found.value - found.baseline, rel=0.05)
    page.selectbox(key="past level").set_value(4).run()
    page.selectbox(key="why what").set_value(4)
    button(page, say("why_run")).click().run()
    assert not page.exception and not page.error
    assert page.selectbox(key="past level").options == ["Block 1 · queries", "Block 1 · MLP"]


def test_what_heavy_branches_added_to_a_token_is_drawn(divided):
    page = opened(PAGES["explore"], selected="12")
    page.button(key="follow").click().run()
    assert not page.exception and not page.error
    figures = [json.loads(chart.proto.spec)["data"] for chart in page.get("plotly_chart")]
    names = {each.get("name") for figure in figures for each in figure if each.get("nbinsx")}
    assert names & {"Block 1 · queries", "Block 1 · MLP"} and "Block 1 · keys and values" not in names


def test_a_level_that_what_is_asked_does_not_lie_behind_has_no_line(divided):
    page = AppTest.from_string(PAGES["debug"], default_timeout=120)
    page.query_params.update({"v": "2", "checkpoint": "divided", "prompt": TEXT, "selected": "12"})
    page.session_state["debug"] = say("tab_why")
    page.run()
    page.selectbox(key="why what").set_value(1)
    page.selectbox(key="why method").set_value("conductance")
    button(page, say("why_run")).click().run()
    assert not page.exception and not page.error
    assert say("past_none") in [each.value for each in page.caption]


def test_changed_decisions_and_emptied_branches_are_in_the_words_of_light_and_heavy_branches(divided):
    page = opened(PAGES["debug"], edits="bypass 4@1;retention 0@3")
    (flips,) = (each.value for each in page.dataframe if say("flip_now") in each.value.columns)
    inside = flips[flips[say("edit_level")].str.startswith("Block 1")]
    words = {table("en")["view_keptState_heavy"], table("en")["view_droppedState_heavy"]}
    assert len(inside) and set(inside[say("flip_now")]) <= words
    (warning,) = page.warning
    assert warning.value == table("en")["edit_emptied_heavy"].format(levels="Block 1 · MLP")


def test_a_structure_without_brackets_has_no_retention_to_set(divided):
    page = AppTest.from_string(PAGES["efficiency"], default_timeout=120)
    page.session_state["checkpoint"] = "divided"
    page.session_state["efficiency"] = "Predicted"
    page.run()
    labels = [each.label for each in page.slider]
    assert say("retention_slider") in labels
    next(box for box in page.text_input if box.label == say("structure")).set_value("CCC").run()
    assert not page.exception and not page.error
    assert say("retention_slider") not in [each.label for each in page.slider]
    assert "--structure CCC" in page.code[0].value and "--retention" not in page.code[0].value


def test_the_cache_of_a_choice_has_its_name(divided):
    page = AppTest.from_string(PAGES["efficiency"], default_timeout=120)
    page.session_state["checkpoint"] = "divided"
    page.run()
    page.multiselect(key="lengths").set_value([512])
    page.slider(key="repeats").set_value(1).run()
    button(page, "Measure").click().run()
    assert not page.exception and not page.error
    (cache,) = (each.value for each in page.table if each.value.index.name == say("level_cache"))
    assert [*cache.index][1:4] == ["Block 1 · queries", "Block 1 · keys and values", "Block 1 · MLP"]


def test_costs_open_in_chinese(divided):
    opened(PAGES["efficiency"], lang="zh")


@pytest.mark.parametrize("edits", ["drop 2-4@1", "keep 3@2", "threshold 0.5@3", "dense@*", "retention 0.5@2"])
def test_choices_of_a_block_can_be_edited(divided, edits):
    opened(PAGES["debug"], edits=edits)
