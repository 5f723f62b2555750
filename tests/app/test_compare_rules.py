"""Rules compared on the page: on demand, with a verdict, and with token text as data."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.commands.rivals import NAMES
from analysis.quality.rivals import Outcome
from analysis.quality.selection_rules import SelectionRule
from app.components.rules_view import Bar, view_data
from app.strings import LANGUAGES, table
from tests.analysis.debug.test_intervene import prompt_of
from tests.app.scripts import leaving, script
from tests.app.test_explore import MAIN, button, page, run  # noqa: F401 - a fixture
from tests.conftest import tiny_model

TEXT = "the cat sat on the mat and then the dog sat on the cat " * 2


def test_nothing_is_compared_until_it_is_asked_for_and_then_every_rule_has_its_line(page):  # noqa: F811
    run(page, TEXT)
    assert not page.exception and len(page.dataframe) == 2
    assert "rivals" not in page.session_state["session"].found
    button(page, "Compare rules (12 passes)").click().run()
    assert not page.exception and not page.error
    table = page.dataframe[-1].value
    assert len(table) == 7
    losses = table["Loss, nats per token"].astype(float).tolist()
    assert losses == sorted(losses)
    said = " ".join(info.value for info in page.info).replace("\\", "")
    assert "On this text" in said or "too short" in said


def test_the_oracle_is_a_choice_and_the_continuation_has_a_probability(page):  # noqa: F811
    run(page, "the cat sat on the mat and then")
    next(toggle for toggle in page.toggle if "oracle" in toggle.label).set_value(True).run()
    answer = next(field for field in page.text_input if field.label.startswith("Known continuation"))
    answer.set_value(" the dog").run()
    button(page, "Compare rules").click().run()
    assert not page.exception and not page.error
    table = page.dataframe[-1].value
    assert "oracle by ablation" in table["Rule"].tolist()
    assert table["Probability of the continuation"].between(0, 1).all(), "numbers, which can be sorted"
    assert table["Loss compared with this run's selection"].dtype == float


def test_what_was_compared_is_there_again_after_a_visit_to_another_page(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_string(leaving(script("explore")), default_timeout=60)  # noqa: F811
    page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT})
    page.run()
    next(field for field in page.text_input if field.label.startswith("Known continuation")).set_value(" the dog").run()
    button(page, "Compare rules").click().run()
    assert not page.exception and not page.error
    compared = page.dataframe[-1].value
    assert "Probability of the continuation" in compared
    page.checkbox(key="here").set_value(False).run()
    assert not page.dataframe
    page.checkbox(key="here").set_value(True).run()
    assert page.dataframe[-1].value.equals(compared)


def test_the_oracle_is_not_offered_where_ablation_is_switched_off(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_FEATURES", "none")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    page = AppTest.from_file(MAIN, default_timeout=60).run()  # noqa: F811
    page.selectbox[0].set_value("tiny").run()
    run(page, TEXT)
    assert not [toggle for toggle in page.toggle if "oracle" in toggle.label]
    button(page, "Compare rules (12 passes)").click().run()
    assert not page.exception and not page.error


def test_a_model_whose_levels_drop_nothing_says_why_there_is_nothing_to_compare(tiny_checkpoint, tmp_path, monkeypatch):
    fields = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = tiny_model("T(T)T", router="stride", retention_ratio=0.5, max_position_embeddings=512, **fields)
    model.save_pretrained(tmp_path / "merging")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "merging" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    monkeypatch.setenv("SUBLLM_ROOTS", str(tmp_path))
    page = AppTest.from_file(MAIN, default_timeout=60).run()  # noqa: F811
    page.selectbox[0].set_value("merging").run()
    run(page, TEXT)
    assert not page.exception and not page.error
    assert any("Other rules cannot take the place" in info.value for info in page.info)
    assert not [each for each in page.button if "Compare rules" in each.label]


def test_the_command_and_the_page_call_a_rule_the_same():
    assert {rule: table("en")[f"rule_{rule}"] for rule in SelectionRule} == NAMES


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_verdict_names_its_rule_in_quotes(language):
    for outcome in (Outcome.BETTER, Outcome.WORSE, Outcome.OPEN):
        assert "“{rule}”" in table(language)[f"rivals_{outcome}"]


STATES = [(True, True, False, "2"), (False, True, False, "1"), (False, False, False, "0"), (False, False, True, "3")]


@pytest.mark.parametrize("state", STATES)
def test_the_browser_gets_texts_as_they_are_and_a_state_for_every_token(state):
    kept, reached, merged, said = state
    prompt = prompt_of(np.arange(9))
    count = len(prompt)
    bar = Bar("<b>", np.full(count, kept), np.full(count, reached), np.full(count, merged))
    data = view_data(prompt, [bar], range(1, 4), {})
    assert data["pieces"] == prompt.pieces[1:4].tolist() and data["first"] == 1
    assert data["rules"] == [{"name": "<b>", "states": said * 3}]
