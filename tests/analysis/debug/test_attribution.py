"""Attribution: cases with a known answer, gradients against finite differences, and what is held fixed."""

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance

from analysis import AnalysisError
from analysis.debug.attribution import attribute
from analysis.debug.attribution_methods import Method
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import parse_edits
from analysis.debug.target import Question, Target
from subllm import Probe
from tests.analysis.debug.conftest import prompt_of
from tests.conftest import tiny_model

IDS = np.array([5, 9, 33, 7, 60, 12, 2, 81, 44, 20])


@pytest.fixture(scope="module")
def model():
    return tiny_model("T(T(T)T)T")


@pytest.fixture(scope="module")
def reader():
    """The scorer of "(TT)" stands before all blocks, so it reads one channel of a token's own embedding."""
    model = tiny_model("(TT)")
    with torch.no_grad():
        model.model.subsamplers[0].weight.zero_()
        model.model.subsamplers[0].weight[3] = 2.0
    return model


def kept_at(model, level):
    """(T,) which tokens a level keeps."""
    return Target(model, IDS, Question(9), "kept").routing[level - 1].kept[0].numpy()


@pytest.mark.parametrize("method", [method for method in Method if method != "conductance"])
def test_a_scorer_that_reads_one_known_feature_is_explained_by_it(reader, method):
    found = attribute(reader, IDS, Question(4, level=1), method, baseline="zero", window=1, measure_memory=True)
    expected = 2 * reader.model.embed_tokens.weight[IDS[4], 3].item()
    assert found.value == pytest.approx(expected, abs=1e-5)
    assert found.baseline == 0
    assert found.values[4] == pytest.approx(expected, abs=1e-5)
    assert np.abs(np.delete(found.values, 4)).max() < 1e-6
    assert abs(found.delta) < 1e-5
    assert found.peak_bytes > 0


@pytest.mark.parametrize("question", [Question(9), Question(6, answer=17), Question(5, level=1)])
def test_integrated_gradients_add_up_to_the_value(model, question):
    found = attribute(model, IDS, question, "integrated gradients", "routing", steps=200)
    assert found.values.sum() == pytest.approx(found.value - found.baseline, abs=0.02 * max(1, abs(found.value)))
    assert found.delta == pytest.approx(found.values.sum() - (found.value - found.baseline), abs=1e-5)
    assert np.abs(found.values[question.token + 1 :]).max(initial=0) < 1e-6, "nothing after it was read"


def check_gradients(target):
    """Compare gradients with finite differences."""
    embeddings = target.embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(embeddings).sum(), embeddings)
    for token in (0, 3, 7):
        direction = torch.zeros_like(embeddings)
        direction[0, token] = torch.randn(32, generator=torch.Generator().manual_seed(token), dtype=torch.float64)
        step = 1e-4
        with torch.no_grad():
            ahead, behind = (target(target.embeddings + sign * step * direction) for sign in (1, -1))
        slope = (ahead - behind).item() / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("held", ["kept", "routing"])
@pytest.mark.parametrize("question", [Question(9), Question(7, level=1)])
def test_gradients_with_frozen_routing_match_finite_differences(model, held, question):
    try:
        check_gradients(Target(model.double(), IDS, question, held))
    finally:
        model.float()


EDITED = ["drop 2,3@1; keep 6@1", "retention 0.3@*", "threshold 0.4@1; bypass 0.5@2", "dense@*; budget 5@1"]


@pytest.mark.parametrize(
    ("edits", "fields"),
    [*((each, {}) for each in EDITED), (EDITED[2], {"router": "mod"}), (EDITED[0], {"router": "stride"})],
)
@pytest.mark.parametrize("held", ["kept", "routing", "nothing"])
def test_a_run_with_edits_is_explained_with_them(edits, fields, held):
    model, prompt = tiny_model("T(T(T)T)T", **fields), prompt_of(IDS)

    def override():
        return EditOverride(parse_edits(edits), prompt)

    with torch.no_grad():
        logits = model(torch.tensor(IDS)[None], use_cache=False, probe=Probe(override=override())).logits
    question = Question(7)  # the tokens after it count for an edit that reaches a retention
    expected = logits[0, 7].log_softmax(-1).max().item()
    found = attribute(model, IDS, question, "input x gradient", held, override=override())
    assert found.value == pytest.approx(expected, abs=1e-5)
    if held != "nothing":  # free routing has jumps
        check_gradients(Target(model.double(), IDS, question, held, override()))


def test_free_routing_sees_that_a_token_is_dropped_and_frozen_routing_does_not():
    model = tiny_model("(T)T")
    with torch.no_grad():
        scorer = model.model.subsamplers[0].weight
        scorer.zero_()
        scorer[0] = 1.0
        model.model.embed_tokens.weight[:, 0] = 0.5  # all are kept; at the baseline "zero" none is
    values = {
        held: attribute(model, IDS, Question(9), "ablation", held, baseline="zero")
        for held in ("kept", "routing", "nothing")
    }
    assert values["kept"].value == values["nothing"].value == pytest.approx(values["routing"].value, abs=1e-5)
    free = Target(model, IDS, Question(9), "nothing")
    with torch.no_grad():
        changed = free.embeddings.clone()
        changed[0, 2] = 0
        expected = (free(free.embeddings) - free(changed)).item()
    assert values["nothing"].values[2] == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(values["nothing"].values, values["routing"].values, atol=1e-4)


def test_conductance_goes_through_blocks_that_come_before_what_is_asked(model):
    found = attribute(model, IDS, Question(9), "conductance")
    assert found.conductance.blocks.shape == (5,)
    assert np.abs(found.conductance.blocks).min() > 0
    early = attribute(
        model,
        IDS,
        Question(int(np.flatnonzero(kept_at(model, 1))[-1]), level=2),
        "conductance",
    )
    assert (early.conductance.blocks != 0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("held", ["kept", "routing"])
def test_conductance_is_captums_though_all_blocks_share_a_pass(model, held):
    question = Question(9)
    target = Target(model, IDS, question, held)
    base = model.model.embed_tokens.weight.detach().mean(0).expand_as(target.embeddings)
    expected = [
        LayerConductance(target, block).attribute(target.embeddings, base, n_steps=1000).sum().item()
        for block in model.model.layers
    ]
    assert attribute(model, IDS, question, "conductance", held, steps=100).conductance.blocks == pytest.approx(
        expected, abs=1e-3, rel=0.03
    )


def test_conductance_follows_tokens_when_the_routing_is_free(model):
    found = attribute(model, IDS, Question(9), "conductance", "nothing", baseline="zero")
    target = Target(model, IDS, Question(9), "nothing")

    def kept(embeddings):
        counts = []
        target(embeddings, lambda event: counts.append(event.after.positions.shape[1]))
        return counts

    assert kept(target.embeddings * 0.05) != kept(target.embeddings), "the routing changed on the way"
    assert np.isfinite(found.conductance.blocks).all() and found.conductance.blocks.any()


@pytest.mark.parametrize("held", ["kept", "routing"])
def test_what_comes_past_an_outermost_level_is_all_there_is(model, held):
    found = attribute(model, IDS, Question(9), "conductance", held, steps=64)
    whole = found.value - found.baseline
    assert found.conductance.carried[0].sum() + found.conductance.added[0].sum() == pytest.approx(whole, rel=5e-3)
    assert found.conductance.blocks[[0, -1]] == pytest.approx([whole] * 2, rel=0.01), "nothing goes past these"
    kept = np.stack([kept_at(model, level) for level in (1, 2)])
    assert np.abs(found.conductance.added[~kept]).max() == 0, "a level adds nothing to a token that it drops"
    assert np.abs(found.conductance.carried[0][~kept[0]]).min() > 0
    assert np.abs(found.conductance.carried[1][~kept[0]]).max() == 0, (
        "what an outer level drops does not come to an inner one"
    )


def test_a_level_that_adds_nothing_carries_everything():
    model = tiny_model("T(T)T")
    with torch.no_grad():
        model.model.bypasses[0].scale.zero_()
    found = attribute(model, IDS, Question(9), "conductance", "routing", steps=200)
    assert np.abs(found.conductance.added).max() == 0
    whole = found.value - found.baseline
    assert found.conductance.carried.sum() == pytest.approx(whole, abs=0.03 * max(1, abs(whole)))
    assert found.conductance.blocks[1] == 0, "nothing flows through a block whose output is taken away"


def test_a_score_asked_inside_of_a_level_flows_past_none(model):
    token = int(np.flatnonzero(kept_at(model, 1))[-1])
    found = attribute(model, IDS, Question(token, level=2), "conductance").conductance
    assert np.isnan(found.carried).all() and np.isnan(found.added).all() and found.carried.shape == (2, token + 1)


@pytest.mark.parametrize("held", ["kept", "routing"])
def test_what_comes_past_each_choice_of_a_light_heavy_block_is_all_there_is(held):
    model = tiny_model("CT(C)", window=8)
    with torch.no_grad():
        model.model.layers[0].routers["mlp"].threshold.fill_(-10)  # a heavy branch that takes all tokens
    found = attribute(model, IDS, Question(9), "conductance", held, steps=128)
    queries, keys, mlp, level, *inner = (found.conductance.carried + found.conductance.added).sum(1)
    whole = found.value - found.baseline
    assert [queries, mlp, level] == pytest.approx([whole] * 3, rel=0.02)
    assert np.isnan([keys, inner[1]]).all(), "keys and values add nothing to the stream"
    kept = kept_at(model, 1)
    assert np.abs(found.conductance.added[0][~kept]).max() == 0 < np.abs(found.conductance.added[0][kept]).max()
    assert np.abs(found.conductance.added[2]).min() > 0


def test_words_are_features_of_several_tokens(model):
    features = np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 4])
    for method in Method:
        found = attribute(model, IDS, Question(9), method, groups=features)
        assert found.values.shape == (5,)


def test_progress_is_told_and_can_stop(model):
    told = []
    attribute(model, IDS, Question(9), "ablation", progress=lambda share, stage, **values: told.append(share))
    assert told == sorted(told)
    assert len(told) > 5

    def stop(share, stage, **values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribute(model, IDS, Question(9), "integrated gradients", progress=stop)
    assert all(parameter.requires_grad for parameter in model.parameters()), "left as it was"


def test_the_outermost_level_that_dropped_a_token_is_named():
    model = tiny_model("T(T(T(T)T)T)T")
    reached = [*(kept_at(model, level) for level in (1, 2))]
    for token in range(10):
        if not reached[0][token]:
            culprit = 1
        elif not reached[1][token]:
            culprit = 2
        else:
            attribute(model, IDS, Question(token, level=3), "occlusion")
            continue
        with pytest.raises(AnalysisError, match=f"no score at Level 3 because Level {culprit} dropped it"):
            attribute(model, IDS, Question(token, level=3))


@pytest.mark.parametrize("router", ["even", "random"])
def test_a_level_without_scores_is_told_from_one_that_has_them(router):
    model = tiny_model("T(T)T(T)T", router=[router, "subllm"])
    with pytest.raises(AnalysisError, match=f"Level 1 has no scores: its router is '{router}'"):
        attribute(model, IDS, Question(3, level=1))
    assert attribute(model, IDS, Question(3, level=2), "input x gradient").values.any()
    for held in ("kept", "routing", "nothing"):
        target = Target(model, IDS, Question(9), held)
        with torch.no_grad():
            expected = model(torch.tensor(IDS)[None]).logits[0, -1].log_softmax(-1).max()
            torch.testing.assert_close(target(target.embeddings)[0], expected)


def test_what_cannot_be_explained_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    dropped = int(np.flatnonzero(~kept_at(model, 1))[0])
    for question, message in (
        (Question(99), "There is no token 99"),
        (Question(3, level=8), "There is no Level 8; the number of levels of this model is 2"),
        (Question(3, level=0), "There is no Level 0"),
        (Question(dropped, level=2), "has no score at Level 2 because Level 1 dropped it"),
    ):
        with pytest.raises(AnalysisError, match=message):
            attribute(model, IDS, question)
    for fields, message in (
        ({"method": "tea leaves"}, "no method 'tea leaves'"),
        ({"held": "hands"}, "'hands' cannot be held fixed"),
        ({"baseline": "sea level"}, "no baseline 'sea level'"),
        ({"baseline": "end"}, "has no end-of-text token"),
    ):
        with pytest.raises(AnalysisError, match=message):
            attribute(model, IDS, Question(9), **fields)
    monkeypatch.setattr("analysis.debug.attribution.free_bytes", lambda device: 1000)
    with pytest.raises(AnalysisError, match="Use ablation or occlusion"):
        attribute(model, IDS, Question(9))
    attribute(model, IDS, Question(9), "occlusion")


def test_conductance_of_a_score_that_no_block_comes_before_has_no_ways():
    model = tiny_model("(T)T")
    found = attribute(model, np.arange(1, 9), Question(5, level=1), "conductance", steps=4)
    assert not found.conductance.blocks.any() and np.isnan(found.conductance.added).all()
    assert found.values.sum() == pytest.approx(found.value - found.baseline, abs=1e-3)
