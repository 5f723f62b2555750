"""Interventions: no edit changes nothing, edits do what they say, and only what follows them runs again."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from analysis import AnalysisError
from analysis.edits import EVERY, Edit, EditedRouting, parse_edits, ranges, without
from analysis.intervene import intervene, judge, reachable, read_ground
from analysis.prompt import read_prompt
from analysis.search import candidates, estimate, measure
from subllm import StreamState
from subllm.structure import BLOCK
from tests.conftest import tiny_model

STRUCTURE = "T(T(TT)T)(T)T"


@pytest.fixture(scope="module")
def model():
    return tiny_model(STRUCTURE)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (40,), generator=torch.Generator().manual_seed(0)).numpy()


@pytest.fixture(scope="module")
def ground(model, ids):
    return read_ground(model, ids, [5, 9])


@pytest.mark.parametrize(
    "edits",
    [[], [Edit("threshold", 0)], [Edit("bypass", 1, value=1.0)], [Edit("threshold", EVERY)], [Edit("keep", 2, ())]],
)
def test_an_edit_that_does_nothing_changes_nothing(ground, edits):
    outcome = intervene(ground, edits)
    assert torch.equal(outcome.hidden, ground.hidden)
    assert outcome.divergence == 0
    assert not outcome.flipped.any()
    assert outcome.answer[0] == outcome.answer[1]
    np.testing.assert_array_equal(outcome.next_probabilities[0], outcome.next_probabilities[1])


def run_again(model, ids, edits):
    """The same edits in a pass from the embedding on."""
    with torch.inference_mode():
        return model.model(
            torch.tensor([[*ids, 5, 9]]), use_cache=False, rule=EditedRouting(edits), output_routing=True
        )


EDITS = [
    "drop 0-20@0",
    "keep 0-39@2",
    "threshold -0.3@1",
    "retention 0.25@*",
    "bypass 0@0",
    "dense@1",
    "keep 4@*",
]


@pytest.mark.parametrize("text", EDITS)
def test_going_on_from_a_snapshot_is_reading_it_all(model, ids, ground, text):
    edit = Edit.parse(text)
    outcome = intervene(ground, [edit])
    whole = run_again(model, ids, [edit])
    torch.testing.assert_close(outcome.hidden, whole.last_hidden_state[0], rtol=1e-5, atol=1e-5)
    kept = np.zeros_like(ground.kept)
    for span, record in enumerate(whole.routing):
        kept[span, [token for token in record.kept[0].tolist() if token < 40]] = True
    np.testing.assert_array_equal(outcome.kept, kept)
    assert outcome.share < 1
    again = judge(ground, outcome)
    assert again["divergence"].max() > 1e-6
    assert again["divergence"][-1] == pytest.approx(outcome.divergence, abs=1e-5)
    assert Edit.parse(str(edit)) == edit


def test_only_what_follows_the_first_edit_runs_again(model, ground):
    ran, shares = [], []
    model_ids = ground.ids
    for span, expected in ((0, "(T(TT)T)(T)T"), (1, "(TT)T)(T)T"), (2, "(T)T")):
        ran.clear()

        def observe(state: StreamState):
            ran.append(state.symbol)

        with torch.inference_mode():
            model.model(model_ids, use_cache=False, resume=ground.snapshots[span], observer=observe)
        assert "".join(ran) == expected
        shares.append(intervene(ground, [Edit("bypass", span, value=0.5)]).share)
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_what_is_forced_is_kept_or_dropped_and_the_rest_decides_for_itself(ground):
    outcome = intervene(ground, [Edit("keep", 0, tuple(range(40))), Edit("drop", 0, (3, 4))])
    assert outcome.kept[0].sum() == 38
    assert not outcome.kept[0, [3, 4]].any()
    assert not outcome.flipped[0].any(), "all were named"
    assert outcome.cache_bytes[1] > outcome.cache_bytes[0]
    assert outcome.operations[1] > outcome.operations[0]
    emptied = intervene(ground, [Edit("drop", 2, tuple(range(40)))])
    assert emptied.emptied == [2]
    assert np.isfinite(emptied.next_probabilities).all()


def test_everything_kept_is_the_dense_path_with_the_same_bypass(model, ids, ground):
    outcome = intervene(ground, [Edit("dense", EVERY)])
    stream = model.model.embed_tokens(torch.tensor([[*ids, 5, 9]]))
    positions = model.model.rotary_emb(stream, position_ids=torch.arange(42)[None])
    outer = []
    with torch.inference_mode():
        for step in model.config.parsed_structure.steps:
            if step.symbol == BLOCK:
                stream = model.model.layers[step.index](stream, attention_mask=None, position_embeddings=positions)
            elif step.symbol == "(":
                outer.append(stream)
            else:
                before = outer.pop()
                stream = before + model.model.bypasses[step.index].scale * (stream - before)
        expected = model.model.norm(stream)[0]
    torch.testing.assert_close(outcome.hidden, expected, rtol=1e-4, atol=1e-4)
    assert outcome.kept.all()


def test_a_token_that_an_outer_level_dropped_is_said_and_can_be_kept_there_too(model, ground):
    dropped = int(np.flatnonzero(~ground.kept[0])[0])
    edits = [Edit("keep", 1, (dropped,))]
    outcome = intervene(ground, edits)
    assert outcome.absent == [(1, dropped)]
    parents = [span.parent for span in model.config.parsed_structure.spans]
    mended = intervene(ground, reachable(edits, outcome.absent, parents))
    assert mended.absent == []
    assert mended.kept[:2, dropped].all()
    assert intervene(ground, [Edit("drop", EVERY, (dropped,))]).absent == []


def test_keeping_many_tokens_in_outer_levels_too_is_one_edit_per_level():
    absent = [(2, token) for token in range(5)] + [(1, 7)]
    wanted = [Edit("keep", 1, (0, 1, 2, 3, 4)), Edit("keep", 0, (0, 1, 2, 3, 4, 7))]
    assert reachable([], absent, [None, 0, 1]) == wanted


def test_edits_are_written_down_and_read(checkpoint):
    text = "the cat, sat on 12 mats"
    prompt = read_prompt(text, checkpoint.tokenizer, 512)

    def named(what):
        edit = Edit.parse(f"drop {what}@0", prompt.text, prompt.starts, prompt.ends)
        return "".join(prompt.pieces[list(edit.tokens)])

    assert "12" in named("digits")
    assert "cat" not in named("digits")
    assert "," in named("punctuation")
    assert "cat" in named("'cat'")
    assert ranges((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"
    assert without([Edit("keep", 0, (1, 2)), Edit("dense", 0)], [2], 0) == [Edit("keep", 0, (1,)), Edit("dense", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep 3", "cannot be read; write one of"),
        ("push 3@0", "cannot be read; write one of"),
        ("keep zebras@0", "names no tokens; write numbers"),
        ("keep 'zebra'@0", "has no tokens that 'zebra' names"),
        ("retention 1.5@0", "needs a number from 0 to 1"),
        ("threshold nan@0", "needs a number"),
        ("keep 99@0", "is for token 99; the prompt has 0 to 39"),
        ("keep 9@7", "it has 0 to 2"),
        ("drop 7-3@0", "from the lower to the higher one"),
        ("drop 1-2-3@0", "is no token"),
        ("drop 1,,2@0", "is no token"),
        ("dense 3@0", "cannot be read"),
        ("bypass 1e300@0", "needs a number from -1,000,000 to 1,000,000"),
    ],
)
def test_edits_that_do_not_fit_are_refused(ground, text, message):
    with pytest.raises(AnalysisError, match=message):
        intervene(ground, [Edit.parse(text)])


HOSTILE = {
    "spaces": ("drop" + " " * 16_000 + "x", "cannot be read"),
    "spaces before the module": ("drop 1" + " " * 16_000 + "@" + " " * 300 + "x", "cannot be read"),
    "very long": ("drop " + " " * 10**7 + "1@0", "has 10,000,008 characters; at most 16,384"),
    "wide ranges": ("keep " + ",".join(["0-999999"] * 1_500) + "@0", "go beyond 262,143"),
    "many digits": ("drop " + "1" * 5_000 + "@0", "at most 6 digits"),
    "many digits of a module": ("drop 1@" + "1" * 5_000, "cannot be read"),
    "many digits of a number": ("threshold " + "1" * 5_000 + "@0", "needs a number from"),
    "quotes": ("drop " + "'" * 16_000 + "x@0", "names no tokens"),
}


@pytest.fixture
def bounded():
    """Fails a test that takes more than 20 s of processor time, also inside of a regular expression."""

    def stop(signal, frame):
        raise AssertionError("more than 20 s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("name", HOSTILE)
def test_edits_that_a_stranger_wrote_are_refused_without_much_work_and_in_a_short_message(bounded, name):
    text, message = HOSTILE[name]
    with pytest.raises(AnalysisError, match=message) as caught:
        Edit.parse(text)
    assert len(str(caught.value)) < 400


def test_a_line_of_edits_is_bounded_as_a_whole(bounded):
    assert parse_edits("drop 1-2@0; keep 5@*;;dense@1;") == [
        Edit("drop", 0, (1, 2)),
        Edit("keep", EVERY, (5,)),
        Edit("dense", 1),
    ]
    with pytest.raises(AnalysisError, match="more than 200 edits"):
        parse_edits("dense@0;" * 100_000)
    with pytest.raises(AnalysisError, match="more than 262,144 tokens"):
        parse_edits(f"keep {','.join(['0-262143'] * 1_500)}@0;" * 200)


def test_a_number_is_of_a_token_of_the_prompt_and_overlapping_ranges_name_it_once():
    assert Edit.parse("drop 2-4,3-5,3@0", "abcdef", range(6), range(1, 7)).tokens == (2, 3, 4, 5)
    with pytest.raises(AnalysisError, match="not all in the prompt, which has 0 to 5"):
        Edit.parse("drop 2-6@0", "abcdef", range(6), range(1, 7))


def test_a_model_without_levels_has_nothing_to_edit():
    ground = read_ground(tiny_model("TT"), np.arange(1, 6))
    assert intervene(ground, []).divergence == 0
    with pytest.raises(AnalysisError, match="it has none"):
        intervene(ground, [Edit("dense", 0)])
    assert intervene(ground, [Edit("dense", EVERY)]).divergence == 0


@pytest.mark.parametrize("span", [0, 1, 2])
def test_the_exact_effect_is_that_of_the_edit(ground, span):
    found = estimate(ground, span)
    assert found.tokens.tolist() == candidates(ground, span).tolist()
    wanted = list(range(len(found.tokens)))[:11]
    stages = list(measure(ground, found, wanted))
    assert len(stages) == 2
    final = stages[-1]
    for index in wanted:
        token = int(final.tokens[index])
        kind = "drop" if ground.kept[span, token] else "keep"
        outcome = intervene(ground, [Edit(kind, span, (token,))])
        assert final.exact[index] == pytest.approx(outcome.answer[1] - outcome.answer[0], abs=1e-4)
    assert np.isnan(final.exact[11:]).all()


def test_the_estimate_is_the_derivative_by_the_weight(ground):
    found = estimate(ground, 2)
    kept = [index for index, token in enumerate(found.tokens) if ground.kept[2, token]]
    for index in kept[:5]:
        token = int(found.tokens[index])
        step = 1e-2
        weight = min(ground.scores[2, token], 1.0)

        def answer(change, token=token):
            def rule(span, scores, positions, mask):
                weights = scores.clamp(0, 1)
                return scores > 0, weights + change * (positions == token) if span == 2 else weights

            with torch.inference_mode():
                output = ground.model(ground.ids, use_cache=False, rule=rule)
                rows = output.logits[0, 39:41].log_softmax(-1)
            return rows.gather(1, ground.ids[0, 40:, None]).sum().item()

        slope = (answer(step) - answer(-step)) / (2 * step)
        assert found.estimate[index] == pytest.approx(-weight * slope, abs=2e-3)


def test_the_command_says_what_changed(tiny_checkpoint):
    command = [sys.executable, "-m", "analysis.intervene", "--checkpoint", str(tiny_checkpoint), "--device", "cpu",
               "--prompt", "the cat sat on the mat 12", "--answer", " dog"]  # fmt: skip
    done = subprocess.run(
        [*command, "--drop", "1-2@0", "--keep", "digits@*"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "edits: keep" in done.stdout
    assert "log-probability of the answer" in done.stdout
    refused = subprocess.run([*command, "--drop", "1-2@9"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is for subsampling module 9" in refused.stderr
