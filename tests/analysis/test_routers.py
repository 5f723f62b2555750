"""Every analysis knows every router: it gives numbers that hold, or says in a sentence why it has none."""

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from analysis.cost.comparison import compare
from analysis.cost.hardware import load_hardware
from analysis.cost.predict import predict
from analysis.cost.roofline import PHASES, Scenario, speedup
from analysis.debug.answer import with_answer
from analysis.debug.attention import attention_of
from analysis.debug.attribution import attribute
from analysis.debug.attribution_methods import METHODS
from analysis.debug.edits import parse_edits
from analysis.debug.generation import Generation
from analysis.debug.intervene import intervene, run_unedited
from analysis.debug.lens import confidence, logit_lens
from analysis.debug.patching import patch_levels
from analysis.debug.search import estimate_effects, measure_effects
from analysis.debug.target import Held, Question
from analysis.errors import AnalysisError
from analysis.figures.terms import flag_in_words
from analysis.quality.evaluate import at_retention
from analysis.quality.needles import needles
from analysis.run import RunOptions, answer_stages, record_trace
from analysis.trace.flags import flags
from analysis.trace.tokenize import read_prompt
from analysis.trace.trace import Trace
from subllm import SubllmConfig
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.convert.fidelity import measure_fidelity
from tests.conftest import tiny_model

TEXT = "the cat sat on the mat and then the dog sat"


class Case(NamedTuple):
    """A model, and the levels whose routers decide by scores."""

    structure: str
    fields: dict
    scored: tuple[int, ...]


CASES = {
    "subllm": Case("T(T(T)T)T", {}, (1, 2)),
    "mod": Case("T(T)T(T)", {"router": "mod", "retention_ratio": 0.5}, (1, 2)),
    "mod with a predictor": Case("T(T)T(T)", {"router": "mod", "retention_ratio": 0.5, "predictor": True}, (1, 2)),
    "stride": Case("T(T)T(T(T)T)", {"router": "stride", "retention_ratio": [1 / 3, 0.5, 0.5]}, ()),
    "merging in dropping and around it": Case(
        "T(T(T)T)(T(T))", {"router": ["subllm", "stride", "stride", "mod"], "retention_ratio": 0.5}, (1, 4)
    ),
    "light and heavy": Case("CTC", {"light_heads": 2, "light_intermediate_size": 16, "window": 16}, (1, 2, 3, 4, 5, 6)),
    "several": Case("T(T(T)T)T(T)", {"router": ["subllm", "even", "mod"], "retention_ratio": 0.5}, (1, 3)),
}


class Subject(NamedTuple):
    """A case with its checkpoint, the dense twin, a trace and an unedited run."""

    case: Case
    checkpoint: object
    dense: object
    trace: Trace
    unedited: object


@pytest.fixture(scope="module", params=CASES)
def subject(request, tiny_checkpoint, tmp_path_factory):
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("routers")
    vocabulary = SubllmConfig.from_pretrained(tiny_checkpoint).vocab_size
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = tiny_model(case.structure, max_position_embeddings=512, vocab_size=vocabulary, **ends, **case.fields)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny_checkpoint / name).read_bytes())
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    dense = load_dense(checkpoint)
    trace = record_trace(checkpoint, TEXT, RunOptions(new_tokens=5), dense=dense, name="tiny")
    return Subject(case, checkpoint, dense, trace, run_unedited(checkpoint, trace.prompt, [7, 9], "tiny"))


def test_the_trace_is_whole_and_survives_its_file(subject, tmp_path):
    routing = subject.trace.routing
    assert [level for level in routing.levels if routing.scores_tokens(level)] == list(subject.case.scored)
    assert routing.kept.any()
    adding = routing.kept & (routing.site_kinds != "key_value")[:, None]  # keys and values add nothing themselves
    norms = (routing.difference_norm, routing.contribution_norm)
    assert all(np.isfinite(norm[adding]).all() for norm in norms)
    subject.trace.save(tmp_path / "trace.npz")
    assert Trace.load(tmp_path / "trace.npz").digest == subject.trace.digest


def test_a_level_that_chooses_and_keeps_everything_is_flagged(subject):
    routing = subject.trace.routing
    everything = replace(routing, kept=np.ones_like(routing.kept), reached=np.ones_like(routing.reached))
    said = [flag_in_words(subject.trace, flag) for flag in flags(replace(subject.trace, routing=everything))]
    assert sum("every token" in text for text in said) == (~routing.merges).sum()


def test_with_everything_kept_whole_it_is_the_dense_model(subject):
    """The edit "dense" on every level, and bypasses that add everything."""
    model = copy.deepcopy(subject.checkpoint.model)
    for scale in model.model.bypasses.parameters():
        torch.nn.init.ones_(scale)
    checkpoint = replace(subject.checkpoint, model=model)
    unedited = run_unedited(checkpoint, subject.trace.prompt, [7, 9], "tiny")
    outcome = intervene(unedited, parse_edits("dense @*"))
    ids = torch.tensor(subject.trace.prompt.token_ids)[None]
    losses = -subject.dense.model(ids).logits[0, :-1].log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(outcome.trace.likelihood.surprisal[1:], losses.detach(), atol=1e-4)


def test_scores_can_be_edited_where_there_are_some_and_are_refused_elsewhere(subject):
    for level in subject.trace.routing.levels:
        edits = parse_edits(f"retention 0.5@{level}")
        if level in subject.case.scored:
            routing = intervene(subject.unedited, edits).trace.routing
            assert abs(routing.kept[level - 1].sum() - 0.5 * routing.reached[level - 1].sum()) <= 0.5
        else:
            with pytest.raises(AnalysisError, match=f"Level {level}"):
                intervene(subject.unedited, edits)


def test_nothing_is_chosen_where_tokens_are_merged(subject):
    routing = subject.trace.routing
    for level in (routing.merges.nonzero()[0] + 1).tolist():
        row = level - 1
        assert routing.merged[row].any() and not routing.dropped[row].any()
        assert (routing.contribution_norm[row, routing.reached[row]] > 0).all()
        for edit in ("keep 3", "drop 3", "budget 4", "retention 0.5"):
            with pytest.raises(AnalysisError, match=f"Level {level}"):
                intervene(subject.unedited, parse_edits(f"{edit}@{level}"))
        with pytest.raises(AnalysisError, match=f"Level {level} merges tokens"):
            estimate_effects(subject.unedited, level)
        halved = intervene(subject.unedited, parse_edits(f"bypass 0.5@{level}")).trace.routing
        np.testing.assert_allclose(halved.weights[row], 0.5 * routing.weights[row])
        np.testing.assert_allclose(halved.contribution_norm[row], 0.5 * routing.contribution_norm[row], rtol=1e-4)


def test_dropped_and_kept_tokens_are_those_that_the_edit_names(subject):
    for level in subject.case.scored:
        reached = np.flatnonzero(subject.trace.routing.reached[level - 1])
        if not len(reached):
            continue
        token = int(reached[-1])
        for kind in ("keep", "drop"):
            routing = intervene(subject.unedited, parse_edits(f"{kind} {token}@{level}")).trace.routing
            assert routing.kept[level - 1, token] == (kind == "keep")
            assert routing.edited[level - 1, token]


def test_the_search_measures_what_it_estimates(subject):
    for level in subject.case.scored:
        effects = estimate_effects(subject.unedited, level)
        *_, measured = measure_effects(subject.unedited, effects, range(min(3, len(effects.tokens))))
        assert np.isfinite(measured.exact).sum() == min(3, len(effects.tokens))


def test_the_lens_and_attention_follow_a_token_through_all_blocks(subject):
    model, ids = subject.checkpoint.model, subject.trace.prompt.token_ids
    lens = logit_lens(model, ids, len(ids) - 1)
    assert np.isfinite(lens.probabilities).all()
    weights = attention_of(model, ids, len(ids) - 1)
    assert len(weights) == model.config.num_hidden_layers
    assert confidence(model, ids).shape == (model.config.num_hidden_layers, len(ids))


@pytest.mark.parametrize("held", list(Held))
def test_attributions_add_up_or_say_that_there_is_no_score(subject, held):
    model, ids = subject.checkpoint.model, subject.trace.prompt.token_ids
    for method in METHODS:
        found = attribute(model, ids, Question(len(ids) - 1), method, held, steps=4)
        assert np.isfinite(found.values).all()
    for level in subject.trace.routing.levels:
        token = int(np.flatnonzero(subject.trace.routing.reached[level - 1])[-1])
        if level in subject.case.scored:
            attribute(model, ids, Question(token, level), "input x gradient", held)
        else:
            with pytest.raises(AnalysisError, match=f"Level {level}"):
                attribute(model, ids, Question(token, level), "input x gradient", held)


def test_two_tokens_and_two_decisions_are_contrasted_or_there_are_no_scores(subject):
    model, ids = subject.checkpoint.model, subject.trace.prompt.token_ids
    token = len(ids) - 1
    logits = model(torch.tensor(ids)[None], use_cache=False).logits[0, token]
    found = attribute(model, ids, Question(token, answer=7, instead=9), "input x gradient")
    assert abs(found.value - (logits[7] - logits[9]).item()) < 1e-4
    for level in subject.trace.routing.levels:
        other, token = np.flatnonzero(subject.trace.routing.reached[level - 1])[[0, -1]].tolist()
        question = Question(token, level, instead=other)
        if level not in subject.case.scored:
            with pytest.raises(AnalysisError, match=f"Level {level} has no scores"):
                attribute(model, ids, question, "input x gradient")
        elif other != token:
            scores = subject.trace.routing.scores_of(level)
            found = attribute(model, ids, question, "input x gradient")
            assert abs(found.value - (scores[token] - scores[other])) < 1e-4


def test_text_is_written_and_taken_back_as_if_never_written(subject):
    once, twice = (Generation(subject.checkpoint.model, subject.trace.prompt) for _ in range(2))
    for _ in range(4):
        once.step()
        twice.step()
    twice.take_back(2)
    for token in once.tokens[2:]:
        twice.step(token.id)
    for first, second in zip(once.tokens, twice.tokens, strict=True):
        assert (first.reached, first.kept, first.level_bytes) == (second.reached, second.kept, second.level_bytes)
        np.testing.assert_allclose(first.weights, second.weights, atol=1e-4)


def test_prompt_and_answer_are_read_back_as_they_were_written(subject):
    trace, checkpoint = subject.trace, subject.checkpoint
    answered = with_answer(trace.prompt, trace.continuation.ids.tolist(), checkpoint.tokenizer)
    *_, found = answer_stages(checkpoint, trace.prompt, answered, dense=subject.dense)
    before = trace.num_tokens
    np.testing.assert_array_equal(found.routing.kept[:, before:], trace.continuation.kept)
    np.testing.assert_allclose(found.routing.weights[:, before:], trace.continuation.weights, atol=1e-4)
    np.testing.assert_allclose(found.routing.scores[:, before:], trace.continuation.scores, atol=1e-4)
    assert found.provenance.answer_from == before and np.isfinite(found.likelihood.surprisal[before:]).all()


def test_a_state_is_put_in_before_every_level_that_its_token_reaches(subject):
    run, routing = subject.unedited, subject.trace.routing
    other = run_unedited(subject.checkpoint, read_prompt("a dog and a cat", subject.checkpoint.tokenizer, 512))
    last, source = run.num_tokens - 1, other.num_tokens - 1
    own = list(patch_levels(run, run, last, last))
    assert [each.patch.level for each in own] == [level for level in routing.levels if routing.reached[level - 1, last]]
    for same in own:
        assert not same.flipped.any() and same.distance == 0
        np.testing.assert_array_equal(same.trace.routing.weights, run.trace.routing.weights)
    for found in patch_levels(run, other, last, source):
        row = found.patch.level - 1
        if routing.site_kinds[row] == "level":  # a light/heavy block changes the state before its MLP's router
            norms = found.trace.routing.stream_norm[row, last], other.trace.routing.stream_norm[row, source]
            assert abs(norms[0] - norms[1]) < 1e-3
        assert np.isfinite(found.next_probabilities).all() and found.answer is not None


def test_quality_is_measured(subject):
    blocks = torch.randint(1, 90, (2, 40), generator=torch.Generator().manual_seed(1))
    fidelity = measure_fidelity(subject.checkpoint.model, subject.dense.model, blocks)
    assert np.isfinite(fidelity.divergence)
    if subject.case.scored:
        at_retention(subject.checkpoint.model, blocks, 0.5)
    needles(subject.checkpoint, subject.dense, 180, [0.0], 1)


def test_costs_are_measured_and_predicted(subject):
    model = subject.checkpoint.model
    ids = torch.randint(1, 90, (2, 64), generator=torch.Generator().manual_seed(0))
    found = compare(model, subject.dense.model, ids, 1)
    assert 0 < found.cache_bytes[0] <= found.cache_bytes[1]
    scenario = Scenario(load_hardware()[0], tokens=2048)
    assert all(np.isfinite(speedup(model.config, phase, scenario)) for phase in PHASES)
    assert predict(model.config, scenario)
