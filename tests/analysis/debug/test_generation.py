"""Generation step by step: the same tokens as transformers writes, and branches that equal fresh runs."""

import numpy as np
import pytest
import torch

from analysis import AnalysisError
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import Edit
from analysis.debug.generation import Generation, Sampling, first_difference
from subllm import Probe
from subllm.checkpoints.dense import routing_off
from subllm.routing import ROUTERS, routing_arrays
from tests.analysis.debug.test_intervene import prompt_of
from tests.conftest import tiny_model

PROMPT = prompt_of([5, 9, 33, 7, 60, 12, 2, 81])


@pytest.fixture(scope="module")
def model():
    return tiny_model("TT(T(T)T)T", eos_token_id=96)


@pytest.mark.parametrize("which", ["subllm", "dense"])
def test_greedy_steps_are_what_generate_writes(model, which):
    chosen = model if which == "subllm" else routing_off(model)
    generation = Generation(chosen, PROMPT)
    while not generation.finished and len(generation.tokens) < 20:
        generation.step()
    expected = chosen.generate(
        torch.tensor(PROMPT.token_ids)[None],
        attention_mask=torch.ones(1, 8),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    assert generation.ids == expected[0].tolist()


def test_every_token_says_what_became_of_it(model):
    generation = Generation(model, PROMPT)
    owners = np.array(model.config.parsed_structure.block_levels)
    sizes = [0] * 3
    for _ in range(15):
        token = generation.step()
        assert token.kept[0] == (token.scores[0] > 0) == (token.weights[0] > 0)
        assert token.reached == (True, token.kept[0])
        assert (token.scores[1] is None) == (not token.kept[0])
        assert token.blocks == sum((owners == level).sum() for level in (0, 1, 2) if [True, *token.kept][level])
        assert token.seconds > 0
        grew = [after > before for before, after in zip(sizes, token.level_bytes, strict=True)]
        assert token.level_bytes == tuple(max(pair) for pair in zip(sizes, token.level_bytes, strict=True))
        if any(sizes):
            assert grew == [True, *token.kept]
        sizes = token.level_bytes
        likeliest = max(token.alternatives, key=lambda pair: pair[1])
        assert token.id == likeliest[0]


@pytest.mark.parametrize("which", ["subllm", "stride", "dense"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_branch_is_a_fresh_run_of_that_prefix(model, which, temperature):
    chosen = routing_off(model) if which == "dense" else tiny_model("TT(T(T)T)T", router=which, eos_token_id=None)
    sampling = Sampling(temperature, seed=3)
    generation = Generation(chosen, PROMPT, sampling)
    for _ in range(8):
        generation.step()
    other = generation.tokens[3].alternatives[-1][0]
    generation.branch(3, other)
    for _ in range(6):
        generation.step()
    fresh = Generation(chosen, prompt_of(generation.ids[: len(PROMPT) + 4]), sampling)
    for _ in range(6):
        fresh.step()
    assert [token.id for token in generation.tokens[4:]] == [token.id for token in fresh.tokens]
    generation.take_back(0)
    again = Generation(chosen, PROMPT, sampling)
    assert generation.step().id == again.step().id


def test_sampling_is_seeded_and_filtered(model):
    def write(**fields):
        generation = Generation(model, PROMPT, Sampling(**fields))
        return [generation.step().id for _ in range(10)]

    assert write(temperature=1.5, seed=1) == write(temperature=1.5, seed=1)
    assert write(temperature=1.5, seed=1) != write(temperature=1.5, seed=2)
    assert write(temperature=1.5, top_k=1) == write()
    assert write(temperature=1.5, top_p=1e-6) == write()
    repeated = write(repetition_penalty=1e6)
    assert len(set(repeated)) == len(repeated)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2, "top_p": 0.9, "repetition_penalty": 1e-30}], ids=str)
def test_the_smallest_temperatures_take_the_likeliest_token(temperature, filters):
    logits = torch.tensor([-2.0, 1.0, 30.0, 29.0])
    chosen, probabilities = Sampling(temperature, **filters).choose([2, 2], logits)
    assert chosen == 2 and probabilities.tolist() == [0, 0, 1, 0]


def test_a_temperature_divides_the_logits():
    logits = torch.randn(97, generator=torch.Generator().manual_seed(0)) * 5
    _, probabilities = Sampling(0.7).choose([1], logits)
    torch.testing.assert_close(probabilities, torch.softmax(logits / 0.7, -1))


def test_edits_hold_for_what_follows_the_prompt(model):
    dropping = Generation(model, PROMPT, edits=(Edit("threshold", 1, value=1e6),))
    assert not any(dropping.step().kept[0] for _ in range(5))
    keeping = Generation(model, PROMPT, edits=(Edit("dense", None),))
    for _ in range(5):
        token = keeping.step()
        assert token.kept == (True, True) and token.weights == (1.0, 1.0)
    with pytest.raises(AnalysisError, match="for Level 3, and the number of levels"):
        Generation(model, PROMPT, edits=(Edit("dense", 3),))


@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("edits", [(), ("keep 0-3@*", "bypass 0.5@1"), ("drop digits@1", "dense@2")])
def test_what_a_new_token_says_is_what_a_full_forward_records(router, edits):
    model = tiny_model("TT(T(T)T)T(T)", router=router, eos_token_id=None)  # random weights may choose to end
    edits = tuple(map(Edit.parse, edits))
    if ROUTERS[router].merges_tokens:
        edits = tuple(edit for edit in edits if not edit.kind.chooses)
    generation = Generation(model, PROMPT, edits=edits)
    for _ in range(12):
        generation.step()
    override = EditOverride(edits, PROMPT) if edits else None
    with torch.inference_mode():
        records = model(torch.tensor([generation.ids]), probe=Probe(record=True, override=override)).routing
    arrays = {name: array[..., len(PROMPT) :] for name, array in routing_arrays(records, len(generation.ids)).items()}
    tokens = generation.tokens
    for name in ("reached", "kept"):
        np.testing.assert_array_equal(arrays[name].T, [getattr(token, name) for token in tokens])
    np.testing.assert_allclose(arrays["weights"].T, [token.weights for token in tokens], atol=1e-5)
    np.testing.assert_allclose(arrays["scores"].T, np.array([token.scores for token in tokens], dtype=float), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature is -1; it must be 0 or more"),
        ({"top_p": 0}, r"top_p is 0; it must be in \(0, 1\]"),
        ({"top_k": -2}, "top_k is -2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ],
)
def test_bad_sampling_is_refused(fields, message):
    with pytest.raises(AnalysisError, match=message):
        Sampling(**fields)


def test_a_text_that_ended_takes_no_more(model):
    with pytest.raises(AnalysisError, match="no prompt to continue"):
        Generation(model, prompt_of([]))
    with pytest.raises(AnalysisError, match="fills the model's 256 positions"):
        Generation(model, prompt_of([1] * 256))
    generation = Generation(model, PROMPT)
    generation.step(96)
    assert generation.finished
    assert generation.tokens[-1].chosen is False
    with pytest.raises(AnalysisError, match="The text has ended"):
        generation.step()
    generation.take_back(0)
    generation.step()


def test_where_two_texts_part():
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert first_difference([1, 2], [1, 2, 4]) is None
