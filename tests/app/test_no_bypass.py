"""A level without a bypass says so, and its weights are router weights; the other levels keep their words."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis import Trace
from analysis.figures import trace as figures
from analysis.figures.routing_view.data import Shown, view_data
from analysis.run import RunOptions, record_trace
from analysis.trace.statistics import rule_overlap
from analysis.trace.tokenize import read_prompt
from app.strings import table
from subllm.checkpoints.load import load_checkpoint
from tests.conftest import byte_tokenizer, tiny_model

from .test_routing_view import unpack


@pytest.fixture(scope="module", params=[["mod", "mod"], ["subllm", "mod"]], ids=str)
def trace(request, tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("mod"), byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "predictor": True}
    tiny_model("T(T)T(T)T", router=request.param, retention_ratio=0.3, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    return record_trace(checkpoint, read_prompt("the cat sat on the mat", checkpoint.tokenizer, 64), RunOptions(2))


def page(path):
    from analysis import Trace
    from analysis.figures.routing_view.data import Shown
    from app.views.trace import levels

    levels.show(Trace.load(path), Shown(level=2))


def test_the_levels_page_says_that_there_is_no_bypass(trace, tmp_path):
    trace.save(tmp_path / "trace.npz")
    shown = AppTest.from_function(page, args=(str(tmp_path / "trace.npz"),), default_timeout=60).run()
    assert not shown.exception
    assert "Level 2 has no bypass" in shown.caption[1].value
    tabs = [tab.label for tab in shown.tabs]
    expected = {"Predictor's logits and threshold", "What the level added", "Applied router weights"}
    assert expected <= {*tabs} and "Bypass contribution" not in tabs
    assert ("Bypass scales" in tabs) == any(trace.routing.bypassed)


def test_weights_and_figures_are_those_of_the_router(trace):
    routing = trace.routing
    assert np.isnan(routing.bypass_scale[1]).all() and not routing.bypassed[1]
    np.testing.assert_array_equal(routing.processed_share[1], routing.weights[1])
    assert "β" not in figures.bypass_contribution(trace, 2).layout.xaxis.title.text
    assert figures.processed_share(trace, 2).layout.xaxis.title.text == "applied router weight"
    assert len(figures.bypass_scales(trace).data) == sum(routing.bypassed)
    assert rule_overlap(routing, 2).highest == int(0.3 * routing.reached[1].sum())


@pytest.mark.parametrize(("language", "name"), [("en", b"router weight"), ("zh", "路由权重".encode())])
def test_text_and_map_name_the_router_weight(trace, language, name):
    assert isinstance(trace, Trace)
    words, (header, _) = table(language), unpack(view_data(trace, Shown(), table(language)))
    own = header["levels"][1]["words"]
    assert name in own["weight"].encode() and own["added"] == words["channel_bypass_none"]
    assert own["score"] == words["channel_score_mod_predictor"]
    labels = {channel["key"]: channel["label"] for channel in header["channels"]}
    both = {words["channel_bypass"]: not all(trace.routing.routers == "mod"), words["channel_bypass_none"]: True}
    assert labels["bypass"] == " / ".join(label for label, said in both.items() if said)
