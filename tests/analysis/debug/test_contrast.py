"""Why A and not B: differences of logits and of scores, against the parts they are differences of."""

import numpy as np
import pytest
import torch

from analysis import AnalysisError
from analysis.commands import why
from analysis.debug.attribution import attribute
from analysis.debug.contrast import Contrasted, decision, question_of
from analysis.debug.target import Question, Target
from subllm import PromptError
from tests.conftest import run_command, tiny_model

IDS = np.array([5, 9, 33, 7, 60, 12, 2, 81, 44, 20])
METHODS = ["integrated gradients", "input x gradient", "ablation", "conductance"]


@pytest.fixture(scope="module")
def model():
    return tiny_model("T(T(T)T)T")


@pytest.mark.parametrize("method", METHODS)
def test_the_contrast_of_two_tokens_is_the_difference_of_their_explanations(model, method):
    def found(**question):
        return attribute(model, IDS, Question(7, **question), method, "routing", steps=8)

    a, b, both = found(answer=17), found(answer=3), found(answer=17, instead=3)
    assert both.value == pytest.approx(a.value - b.value, abs=1e-5)
    np.testing.assert_allclose(both.values, a.values - b.values, atol=1e-5)
    logits = model(torch.tensor(IDS[:8])[None], use_cache=False).logits[0, 7]
    assert both.value == pytest.approx((logits[17] - logits[3]).item(), abs=1e-5)
    assert both.answer == 17


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [1, 2])
def test_the_contrast_of_two_decisions_is_the_difference_of_their_scores(model, method, level):
    routing = Target(model, IDS, Question(9), "kept").routing
    reached = np.flatnonzero(routing[level - 1].reached[0].numpy())
    first, last = int(reached[1]), int(reached[-1])
    scores = routing[level - 1].scores[0]
    for token, other in ((first, last), (last, first)):
        found = attribute(model, IDS, Question(token, level, instead=other), method, "routing", steps=8)
        assert found.value == pytest.approx((scores[token] - scores[other]).item(), abs=1e-5)
        assert found.answer is None
    assert np.abs(found.values[last + 1 :]).max(initial=0) < 1e-6, "nothing after both was read"


def test_a_token_is_not_contrasted_with_itself_nor_with_one_that_has_no_score(model):
    likeliest = Target(model, IDS, Question(7), "kept").answer
    for question in (Question(7, instead=likeliest), Question(7, answer=4, instead=4), Question(3, 1, instead=3)):
        with pytest.raises(AnalysisError, match="contrasted with itself"):
            Target(model, IDS, question, "kept")
    kept = Target(model, IDS, Question(9), "kept").routing[0].kept[0].numpy()
    inside, dropped = int(np.flatnonzero(kept)[0]), int(np.flatnonzero(~kept)[0])
    with pytest.raises(AnalysisError, match=f"Token {dropped} has no score at Level 2 because Level 1 dropped it"):
        Target(model, IDS, Question(inside, 2, instead=dropped), "kept")
    with pytest.raises(AnalysisError, match="There is no token 99"):
        Target(model, IDS, Question(2, 1, instead=99), "kept")


def test_a_question_is_read_as_a_person_writes_it(checkpoint, trace):
    tokenizer = checkpoint.tokenizer
    cat, dog = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (" cat", " dog"))
    question = question_of(3, None, tokenizer, " cat", " dog and more")
    assert question == Question(3, None, cat, dog)
    assert Contrasted.of(question, cat, trace.prompt, tokenizer) == (" cat", " dog")
    assert question_of(3, None, tokenizer) == Question(3)
    pair = question_of(3, 1, tokenizer, " cat", " 5 ")
    assert pair == Question(3, 1, None, 5)
    assert Contrasted.of(pair, None, trace.prompt, tokenizer) == tuple(trace.prompt.pieces[[3, 5]])
    assert Contrasted.of(Question(3, 1), None, trace.prompt, tokenizer) == (str(trace.prompt.pieces[3]), "")
    with pytest.raises(AnalysisError, match="not the number of a token"):
        question_of(3, 1, tokenizer, "", "dog")
    with pytest.raises(PromptError, match="surrogate"):
        question_of(3, None, tokenizer, "", "\ud800")


def test_a_decision_is_what_the_trace_recorded(trace):
    routing = trace.routing
    for token in range(trace.num_tokens):
        found = decision(routing, 1, token)
        assert found.kept == (found.score > found.threshold) == bool(routing.kept[0, token])
        assert found.rank == 1 + (routing.scores[0] > found.score).sum()
        assert found.reached == trace.num_tokens


def test_the_command_contrasts_words_and_decisions(tiny_checkpoint):
    options = ("--checkpoint", tiny_checkpoint, "--device", "cpu", "--dtype", "float32")
    options = (*options, "--prompt", "the cat sat on the mat", "--method", "input x gradient")
    said = run_command(why.main, *options, "--answer", " cat", "--instead", " mat")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("log-probability of ' cat' after token ") and " minus that of ' mat'" in said.stdout
    said = run_command(why.main, *options, "--level", 1, "--token", 2, "--instead", 0)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("score of token 2 ' sat' at Level 1 minus that of token 0 'the': ")
    assert "token 2: score " in said.stdout and "token 0: score " in said.stdout and " of 6" in said.stdout
    refused = run_command(why.main, *options, "--level", 1, "--instead", "cat")
    assert refused.returncode == 1 and "'cat' is not the number of a token" in refused.stderr
