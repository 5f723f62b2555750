"""Every page says of each router what is true of it, in its own words, and leaves out what it does not have."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.figures import trace as figures
from analysis.figures.routing_view.data import Shown, view_data
from analysis.figures.terms import level_words, router_name, state_in_words, system_name
from analysis.run import RunOptions, record_trace
from app.strings import LANGUAGES, table
from app.views.trace import compare_rules
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from tests.conftest import byte_tokenizer, tiny_model

from .test_routing_view import unpack

TEXT = "the cat sat on the mat and then the dog sat on the cat"
MODELS = {
    "subllm": ("T(T)T", {}),
    "mod": ("T(T)T(T)", {"router": "mod"}),
    "predictor": ("T(T)T(T)", {"router": "mod", "predictor": True}),
    "stride": ("T(TT)T", {"router": "stride", "retention_ratio": 0.25}),
    "colt5": ("TCT", {}),
    "several": ("C(T(T)T)(T)", {"router": ["stride", "subllm", "mod"], "retention_ratio": [0.5, 0.5, 0.5]}),
}
SAID = {  # on the page of a level: what has to be there, and what must not
    "subllm": ({"Scores and threshold", "Bypass contribution", "Bypass scales"}, {"router weight", "merge", "heavy"}),
    "mod": (
        {"Router weights and threshold", "What the level added", "Applied router weights", "has no bypass"},
        {"SUBLLM", "importance", "Bypass contribution", "logit", "merge"},
    ),
    "predictor": ({"Predictor's logits and threshold", "Applied router weights"}, {"SUBLLM", "importance"}),
    "stride": (
        {
            "Carriers",
            "Merged",
            "has no scores, no threshold and no training rule",
            "Bypass contribution",
            "“Zipformer”",
        },
        {"SUBLLM", "importance", "Scores and threshold", "Runs of", "training rule,", "dropped"},
    ),
    "colt5": (
        {"Heavy", "What the heavy branch added", "Weights of the heavy branch", "“CoLT5”"},
        {"SUBLLM", "importance", "Bypass contribution", "Bypass scales"},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def named(request, tmp_path_factory):
    """Name of a model, a trace of it, and the file that holds the trace."""
    structure, fields = MODELS[request.param]
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    tiny_model(structure, **fields, **tokens).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    trace = record_trace(checkpoint, TEXT, RunOptions(8, seconds=60), dense=load_dense(checkpoint))
    trace.save(folder / "trace.npz")
    return request.param, trace, str(folder / "trace.npz")


def statistics(path, level):
    from analysis import Trace
    from analysis.figures.routing_view.data import Shown
    from app.views.trace import levels

    levels.show(Trace.load(path), Shown(level=level))


def numbers(path):
    from analysis import Trace
    from app.views.trace import costs, levels

    costs.headline(Trace.load(path))
    costs.table(Trace.load(path))
    levels.continuation(Trace.load(path))


def text_of(function, language="en", tab=None, **values):
    page = AppTest.from_function(function, default_timeout=60, kwargs=values)
    page.session_state["language"] = language
    if tab:
        page.session_state["statistics"] = tab
    page.run()
    assert not page.exception, page.exception
    tabs = [tab.label for tab in page.tabs]
    texts = [each.value for each in [*page.caption, *page.info, *page.markdown]]
    texts += [f"{each.label} {each.value} {each.delta}" for each in page.metric]
    return tabs, "\n".join(tabs + texts + [each.value.to_string() for each in page.table]).replace("\\", "")


def test_the_page_of_a_level_has_the_words_of_its_router_and_no_others(named):
    name, trace, path = named
    for level in trace.routing.levels:
        router = str(trace.routing.routers[level - 1])
        there, not_there = SAID["predictor" if trace.provenance.predictor else router]
        tabs, said = text_of(statistics, path=path, level=level)
        if name != "several":
            kind = trace.routing.site_kinds[level - 1]
            there = {word for word in there if kind != "key_value" or "branch" not in word}
            assert there <= {word for word in there if word in said}, said
            assert not {word for word in not_there if word in said}, said
        for tab in tabs[1:]:
            text_of(statistics, tab=tab, path=path, level=level)
        text_of(statistics, "zh", path=path, level=level)


def test_what_adds_nothing_by_itself_says_so_instead_of_an_empty_figure(named):
    _, trace, path = named
    for level in trace.routing.levels:
        tabs, said = text_of(statistics, path=path, level=level)
        nothing = trace.routing.site_kinds[level - 1] == "key_value"
        assert ("adds nothing to the residual stream by itself" in said) == nothing
        assert ("What the heavy branch added" in tabs) == (trace.routing.site_kinds[level - 1] in ("query", "mlp"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_headline_counts_work_and_the_table_names_the_model(named, language):
    _, trace, path = named
    _, said = text_of(numbers, language, path=path)
    assert f"{float(trace.routing.work.mean(dtype=np.float64)):.0%}" in said
    assert system_name(trace.routing.routers.tolist(), table(language)) in said
    if "subllm" not in trace.routing.routers:
        assert "SUBLLM" not in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_and_map_get_the_words_of_every_level(named, language):
    _, trace, _ = named
    header, arrays = unpack(view_data(trace, Shown(), table(language)))
    words, merging = table(language), trace.routing.merges
    assert ("mergedInto" in arrays) == ("updatedFrom" in arrays) == bool(merging.any())
    assert ("work" in arrays) == bool((trace.routing.site_blocks >= 0).any())
    for level, entry in zip(trace.routing.levels, header["levels"], strict=True):
        own = level_words(trace, level, words)
        shown = header["labels"] | entry["words"]
        for key in ("keptState", "droppedState", "score", "weight", "added", "kept", "dropped", "droppedHelp"):
            assert shown[key] == own[f"view_{key}"]
        light, merges = trace.routing.site_blocks[level - 1] >= 0, merging[level - 1]
        assert entry["skipped"] == ("light" if light else "merged" if merges else "dropped")
        assert entry["name"] == figures.level_name(trace, level, words)
        assert bool(entry["group"]) == light
    if merging.any():
        shape = trace.routing.kept.shape
        np.testing.assert_array_equal(arrays["mergedInto"].reshape(shape), trace.routing.merged_into)
        np.testing.assert_array_equal(arrays["updatedFrom"].reshape(shape), trace.routing.updated_from)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_token_that_an_outer_level_merged_was_not_dropped_and_an_open_group_waits(named, language):
    name, trace, _ = named
    routing, words, said = trace.routing, table(language), set()
    for level in routing.levels:
        for token in range(trace.num_tokens):
            reached, kept = routing.reached[:, token].tolist(), routing.kept[:, token].tolist()
            into = int(routing.merged_into[level - 1, token])
            state = state_in_words(trace, level, reached, kept, into, words)
            said.add(state)
            if not routing.reached[level - 1, token]:
                outer = int(routing.parents[level - 1])
                merged = routing.merged[outer - 1, token]
                assert state == words["view_absentMergedState" if merged else "view_absentState"]
            elif routing.merged[level - 1, token]:
                assert (state == words["view_mergedOpen"]) == (into < 0)
        bar = compare_rules._bar("a rule", routing, level, routing.kept)
        outer = int(routing.parents[level - 1])
        np.testing.assert_array_equal(bar.reached, routing.reached[level - 1])
        if outer and not routing.merges[level - 1]:
            np.testing.assert_array_equal(bar.merged, routing.merged[outer - 1])
    assert (words["view_absentMergedState"] in said) == (name == "several")


def test_a_router_that_somebody_added_is_called_as_it_was_registered():
    assert router_name("every-other") == "every-other"
    assert system_name(["mod", "mod", "every-other"]) == "Mixture-of-Depths + every-other"
    assert system_name([]) == "LLaMA"
