"""Interventions: no edit changes nothing, edits do what they say, and only what follows them runs again."""

import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import AnalysisError
from analysis.commands.edit import main
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import Edit, parse_edits, without, write_edits
from analysis.debug.intervene import intervene, reachable, run_unedited
from analysis.debug.named_tokens import ranges
from analysis.debug.search import candidates, estimate_effects, measure_effects
from analysis.trace.prefill import prefill
from analysis.trace.tokenize import read_prompt
from analysis.trace.trace import Trace
from subllm import Probe
from subllm.checkpoints.load import Checkpoint
from subllm.structure import BLOCK
from tests.analysis.debug.conftest import prompt_of
from tests.analysis.trace.test_trace import make_trace
from tests.conftest import byte_tokenizer, run_command, tiny_model

STRUCTURE = "T(T(TT)T)(T)T"
LENGTH = 40


def checkpoint_of(model):
    return Checkpoint(Path("tiny"), "digest", model, byte_tokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny_model(STRUCTURE)


@pytest.fixture(scope="module")
def prompt():
    return prompt_of(torch.randint(1, 97, (LENGTH,), generator=torch.Generator().manual_seed(0)).numpy())


@pytest.fixture(scope="module")
def unedited(model, prompt):
    return run_unedited(checkpoint_of(model), prompt, [5, 9])


@pytest.mark.parametrize(
    "edits", [[], [Edit("threshold", 1)], [Edit("bypass", 2, value=1.0)], [Edit("threshold", None)]]
)
def test_an_edit_that_does_nothing_changes_nothing(unedited, edits):
    outcome = intervene(unedited, edits)
    routing, untouched = outcome.trace.routing, unedited.trace.routing
    for entry in fields(routing):
        np.testing.assert_array_equal(getattr(routing, entry.name), getattr(untouched, entry.name), entry.name)
    np.testing.assert_array_equal(outcome.trace.blocks.change, unedited.trace.blocks.change)
    assert outcome.divergence == 0
    assert not outcome.flipped.any()
    assert outcome.answer.unedited == outcome.answer.edited
    np.testing.assert_array_equal(outcome.next_probabilities[0], outcome.next_probabilities[1])


EDITS = [
    "drop 0-20@1",
    "keep 0-39@3",
    "threshold -0.3@2",
    "retention 0.25@*",
    "bypass 0@1",
    "dense@2",
    "keep 4@*",
    "drop digits@1",
    "keep 'b1'@2",
    "drop last 20@1",
    "budget 3@*",
]


@pytest.mark.parametrize("text", EDITS)
def test_going_on_from_a_snapshot_is_reading_it_all(model, prompt, unedited, text):
    edit = Edit.parse(text)
    outcome = intervene(unedited, [edit])
    whole = prefill(model, unedited.ids, length=LENGTH, probe=Probe(override=EditOverride([edit], prompt)))
    assert_same(outcome.trace, whole)
    assert outcome.share < 1
    divergence = outcome.trace.agreement.divergence
    assert divergence.max() > 1e-6
    assert divergence[-1] == pytest.approx(outcome.divergence, abs=1e-5)
    assert Edit.parse(str(edit)) == edit


def assert_same(trace, reading):
    """Every array of an edited trace is what a full forward with the same edits records."""
    for entry in fields(trace.routing):
        shown, recorded = getattr(trace.routing, entry.name), getattr(reading.routing, entry.name)
        if shown.dtype.kind == "f":
            np.testing.assert_allclose(shown, recorded, rtol=1e-4, atol=1e-4, err_msg=entry.name)
        else:
            np.testing.assert_array_equal(shown, recorded, entry.name)
    np.testing.assert_allclose(
        trace.blocks.change.astype(np.float32), reading.blocks.change.astype(np.float32), rtol=5e-3, atol=1e-3
    )


STRUCTURES = ["T(T)T", "(T)", "T(T(T)T)T", "(T)(TT)T", "T(T(T)(T))T", "T(T()T)T"]


@st.composite
def edited_runs(draw):
    structure = draw(st.sampled_from(STRUCTURES))
    levels = structure.count("(")
    router = [draw(st.sampled_from(["subllm", "subllm", "even", "random"])) for _ in range(levels)]
    model = tiny_model(structure, draw(st.integers(0, 30)), router=router)
    length = draw(st.integers(1, 20))
    ids = draw(st.lists(st.integers(1, 96), min_size=length, max_size=length))
    scored = [level for level in range(1, levels + 1) if router[level - 1] == "subllm"]
    edits = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["keep", "drop", "dense", "bypass", "threshold", "retention", "budget"]))
        if kind in ("threshold", "retention"):
            if not scored:
                continue
            every = [None] if len(scored) == levels else []
            level = draw(st.sampled_from([*scored, *every]))
        else:
            level = draw(st.sampled_from([None, *range(1, levels + 1)]))
        if kind in ("keep", "drop"):
            tokens = draw(
                st.one_of(
                    st.sets(st.integers(0, length - 1), min_size=1).map(lambda found: ranges(sorted(found))),
                    st.sampled_from(["letters", "digits", "'a0'", "last 3"]),
                )
            )
            edits.append(Edit(kind, level, tokens))
        elif kind == "dense":
            edits.append(Edit(kind, level))
        elif kind == "budget":
            edits.append(Edit(kind, level, value=float(draw(st.integers(1, 12)))))
        else:
            value = draw(st.floats(0, 1) if kind == "retention" else st.floats(-1, 2))
            edits.append(Edit(kind, level, value=float(f"{value:g}")))
    answer = draw(st.lists(st.integers(1, 96), max_size=4))
    return model, prompt_of(ids), edits, answer


@settings(max_examples=60)
@given(edited_runs())
def test_every_number_of_an_edited_run_is_the_edited_run_s(case):
    model, prompt, edits, answer = case
    unedited = run_unedited(checkpoint_of(model), prompt, answer)
    outcome = intervene(unedited, edits)
    # the oracle: one forward over prompt and answer, and one over the prompt alone, whose last logits come next
    override = EditOverride(edits, prompt) if edits else None
    whole = prefill(model, unedited.ids, length=len(prompt), probe=Probe(override=override))
    assert_same(outcome.trace, whole)
    alone = prefill(
        model, unedited.ids[:, : len(prompt)], probe=Probe(override=EditOverride(edits, prompt) if edits else None)
    )
    assert_same(outcome.trace, alone)  # the answer counts for nothing
    with torch.inference_mode():
        logits = model.lm_head(alone.hidden_states).float()
    found = outcome.trace.predictions
    expected = logits[-1].softmax(-1)
    np.testing.assert_allclose(found.next_probabilities, expected[found.next_ids.tolist()], atol=1e-4)
    surprisal = -logits[:-1].log_softmax(-1).gather(1, unedited.ids[0, 1 : len(prompt), None])[:, 0]
    np.testing.assert_allclose(outcome.trace.likelihood.surprisal[1:], surprisal, rtol=1e-3, atol=1e-3)
    assert outcome.trace.provenance.edits == tuple(map(str, edits))
    assert parse_edits(write_edits(edits)) == edits  # a link of them makes the same run
    untouched = unedited.trace
    same = not edits or outcome.trace.digest == untouched.digest
    assert (outcome.trace.run == untouched.run) == (not edits) and (same or edits)


def test_only_what_follows_the_first_edit_runs_again(model, unedited):
    ran, shares = [], []
    for level, expected in ((1, "T(TT)T(T)T"), (2, "TTT(T)T"), (3, "TT")):
        ran.clear()
        probe = Probe(observe=ran.append, resume=unedited.prefill.snapshots[level])
        with torch.inference_mode():
            model.model(unedited.ids, use_cache=False, probe=probe)
        assert sum(type(event).__name__ == "Ran" for event in ran) == expected.count("T")
        shares.append(intervene(unedited, [Edit("bypass", level, value=0.5)]).share)
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_what_is_forced_is_kept_or_dropped_and_the_rest_decides_for_itself(unedited):
    outcome = intervene(unedited, [Edit("keep", 1, "0-39"), Edit("drop", 1, "3-4")])
    routing = outcome.trace.routing
    assert routing.kept[0].sum() == 38
    assert not routing.kept[0, [3, 4]].any()
    forced = ~unedited.trace.routing.kept[0] & routing.kept[0]
    assert forced.any() and (routing.weights[0, forced] == 1).all() and routing.edited[0].all()
    assert (routing.contribution_norm[0, forced] > 0).all()
    assert not outcome.flipped[0].any(), "all were named"
    assert outcome.cache_bytes.ratio > 1
    assert outcome.operations.ratio > 1
    emptied = intervene(unedited, [Edit("drop", 3, "0-39")])
    assert emptied.emptied == [3]
    assert np.isfinite(emptied.next_probabilities).all()


def test_a_moved_threshold_is_what_scores_were_compared_with_and_weights_begin_at(unedited):
    routing = intervene(unedited, [Edit("threshold", 1, value=-0.5)]).trace.routing
    assert routing.thresholds.tolist() == [-0.5, 0, 0]
    reached, scores = routing.reached[0], routing.scores[0]
    np.testing.assert_array_equal(routing.kept[0], reached & (scores > -0.5))
    np.testing.assert_allclose(routing.weights[0], np.where(reached, np.clip(scores + 0.5, 0, 1), 0), atol=1e-6)


def test_a_wanted_retention_is_of_the_prompt_s_tokens_that_reach_the_level(model, prompt):
    unedited = run_unedited(checkpoint_of(model), prompt, [7] * 30)
    routing = intervene(unedited, [Edit("retention", 2, value=0.5)]).trace.routing
    reached = int(routing.reached[1].sum())
    assert int(routing.kept[1].sum()) == reached - round(0.5 * reached)


def test_of_several_wanted_retentions_the_last_one_holds(unedited):
    for text in ("retention 0.8@1;retention 0.3@1", "retention 0.5@*;retention 0.3@1"):
        routing = intervene(unedited, parse_edits(text)).trace.routing
        assert int(routing.kept[0].sum()) == LENGTH - round(0.7 * LENGTH)


def test_an_edit_is_written_down_as_exactly_as_it_is_made():
    edit = Edit.parse("threshold 0.1234567@1")
    assert Edit.parse(str(edit)) == edit and str(Edit("bypass", 2, value=1.0)) == "bypass 1@2"
    scattered = ranges(range(0, 32_768, 2))
    assert Edit.parse(f"keep {scattered}@1").tokens == scattered
    with pytest.raises(AnalysisError, match="names no tokens"):
        Edit.parse("keep 'it's'@1")  # in a line, what follows the second quote would be another edit


def test_everything_kept_is_the_dense_path_with_the_same_bypass(model, unedited):
    outcome = intervene(unedited, [Edit("dense", None)])
    outer = []
    with torch.inference_mode():
        stream = model.model.embed_tokens(unedited.ids)
        positions = model.model.rotary_emb(stream, position_ids=torch.arange(unedited.ids.shape[1])[None])
        for step in model.config.parsed_structure.steps:
            if step.symbol == BLOCK:
                stream = model.model.layers[step.index](stream, attention_mask=None, position_embeddings=positions)
            elif step.symbol == "(":
                outer.append(stream)
            else:
                before = outer.pop()
                stream = before + model.model.bypasses[step.index - 1].scale * (stream - before)
        logits = model.lm_head(model.model.norm(stream)[0, LENGTH - 1])
    found = outcome.trace.predictions
    np.testing.assert_allclose(found.next_probabilities, logits.softmax(-1)[found.next_ids.tolist()], atol=1e-4)
    assert outcome.trace.routing.kept.all()


def test_a_token_that_an_outer_level_dropped_is_said_and_can_be_kept_there_too(unedited):
    dropped = int(np.flatnonzero(~unedited.trace.routing.kept[0])[0])
    edits = [Edit("keep", 2, str(dropped))]
    outcome = intervene(unedited, edits)
    assert outcome.absent == [(2, dropped)]
    mended = intervene(unedited, reachable(edits, outcome.absent, outcome.trace.routing))
    assert mended.absent == []
    assert mended.trace.routing.kept[:2, dropped].all()
    assert intervene(unedited, [Edit("drop", None, str(dropped))]).absent == []


def test_keeping_many_tokens_in_outer_levels_too_is_one_edit_per_level():
    absent = [(3, token) for token in range(5)] + [(2, 7)]
    routing = make_trace(tokens=8).routing
    nested = replace(
        routing, parents=np.asarray([0, 1, 2]), reached=np.asarray([[True], [False], [False]]).repeat(8, 1),
        kept=np.zeros((3, 8), dtype=bool),
    )  # fmt: skip
    assert reachable([], absent, nested) == [Edit("keep", 2, "0-4"), Edit("keep", 1, "0-4,7")]
    merging = replace(nested, strides=np.asarray([1, 2, 1]))
    assert reachable([], absent, merging) == [Edit("keep", 1, "0-4,7")]


def test_no_edit_keeps_a_token_that_an_outer_level_merges():
    model = tiny_model("T(T(T)T)T", router=["stride", "subllm"], retention_ratio=0.5)
    edits = [Edit("keep", 2, "3")]
    outcome = intervene(run_unedited(checkpoint_of(model), prompt_of(range(1, 11))), edits)
    assert outcome.absent == [(2, 3)] and outcome.trace.routing.merged[0, 3]
    assert reachable(edits, outcome.absent, outcome.trace.routing) == edits


def test_edits_are_written_down_and_read(checkpoint):
    prompt = read_prompt("the cat, sat on 12 mats", checkpoint.tokenizer, 512)

    def named(what):
        return "".join(prompt.pieces[list(Edit.parse(f"drop {what}@1").named(prompt))])

    assert "12" in named("digits")
    assert "cat" not in named("digits")
    assert "," in named("punctuation")
    assert "cat" in named("'cat'")
    assert ranges((1, 2, 3, 7, 9, 10)) == "1-3,7,9-10"
    edits = [Edit("keep", 1, "1-2"), Edit("dense", 1), Edit("drop", 1, "digits")]
    assert without(edits, [2], 1, prompt) == [Edit("keep", 1, "1"), *edits[1:]]
    digits = edits[2].named(prompt)
    assert without(edits, digits, 1, prompt) == edits[:2]
    assert without(edits, [2], 2, prompt) == edits


def test_a_class_and_a_text_are_looked_for_in_the_prompt_that_the_edit_is_applied_to(checkpoint):
    edits = parse_edits('drop digits@1;keep "cat; sat"@*')
    assert write_edits(edits) == 'drop digits@1;keep "cat; sat"@*'
    for text in ("12 the cat; sat", "the cat; sat on 345"):
        prompt = read_prompt(text, checkpoint.tokenizer, 512)
        first, second = ("".join(prompt.pieces[list(edit.named(prompt))]) for edit in edits)
        assert first.strip().isdigit() and "cat" in second


def test_links_of_the_old_numbering_are_converted():
    assert parse_edits("drop 3@0;dense@1;bypass 0@*", first=0) == parse_edits("drop 3@1;dense@2;bypass 0@*")
    with pytest.raises(AnalysisError, match="levels are numbered from 1"):
        parse_edits("drop 3@0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep 3", "cannot be read. Write one of"),
        ("push 3@1", "cannot be read. Write one of"),
        ("keep zebras@1", "names no tokens; write numbers"),
        ("keep 'zebra'@1", "No tokens of the prompt match 'zebra'"),
        ("retention 1.5@1", "needs a number from 0 to 1"),
        ("threshold nan@1", "needs a number"),
        ("keep 99@1", "is for token 99; the tokens of the prompt are 0 to 39"),
        ("keep 9@7", "is for Level 7, and the number of levels of this model is 3"),
        ("drop 7-3@1", "from the lower to the higher number"),
        ("drop 1-2-3@1", "is not a token number"),
        ("drop 1,,2@1", "is not a token number"),
        ("dense 3@1", "cannot be read"),
        ("bypass 1e300@1", "needs a number from -1,000,000 to 1,000,000"),
    ],
)
def test_edits_that_do_not_fit_are_refused(unedited, text, message):
    with pytest.raises(AnalysisError, match=message):
        intervene(unedited, [Edit.parse(text)])


def test_a_level_without_scores_has_no_threshold_to_move(prompt):
    unedited = run_unedited(checkpoint_of(tiny_model("T(T(T)T)T", router=["even", "subllm"])), prompt)
    with pytest.raises(AnalysisError, match="threshold of Level 1, but that level's router does not score"):
        intervene(unedited, [Edit("threshold", None, value=0.2)])
    assert intervene(unedited, [Edit("threshold", 2, value=0.2)]).trace.routing.thresholds[1] == np.float32(0.2)


HOSTILE = {
    "spaces": ("drop" + " " * 16_000 + "x", "cannot be read"),
    "spaces before the level": ("drop 1" + " " * 16_000 + "@" + " " * 300 + "x", "cannot be read"),
    "very long": ("drop " + " " * 10**7 + "1@1", "has 10,000,008 characters; at most 262,144"),
    "wide ranges": ("keep " + ",".join(["0-999999"] * 1_500) + "@1", "exceed 262,143"),
    "many digits": ("drop " + "1" * 5_000 + "@1", "at most 6 digits"),
    "many digits of a level": ("drop 1@" + "1" * 5_000, "cannot be read"),
    "many digits of a number": ("threshold " + "1" * 5_000 + "@1", "needs a number from"),
    "quotes": ("drop " + "'" * 16_000 + "x@1", "names no tokens"),
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
    assert parse_edits("drop 1-2@1; keep 5@*;;dense@1;") == [
        Edit("drop", 1, "1-2"),
        Edit("keep", None, "5"),
        Edit("dense", 1),
    ]
    with pytest.raises(AnalysisError, match="more than 200 edits"):
        parse_edits("dense@1;" * 100_000)
    with pytest.raises(AnalysisError, match="more than 262,144 tokens"):
        parse_edits(f"keep {','.join(['0-262143'] * 1_500)}@1;" * 200)


def test_overlapping_ranges_name_a_token_once():
    edit = Edit.parse("drop 2-4,3-5,3@1")
    assert (edit.tokens, edit.named(prompt_of(range(1, 7)))) == ("2-5", (2, 3, 4, 5))


def test_a_model_without_levels_has_nothing_to_edit():
    unedited = run_unedited(checkpoint_of(tiny_model("TT")), prompt_of([1, 2, 3, 4, 5]))
    assert intervene(unedited, []).divergence == 0
    with pytest.raises(AnalysisError, match="number of levels of this model is 0"):
        intervene(unedited, [Edit("dense", 1)])
    assert intervene(unedited, [Edit("dense", None)]).divergence == 0


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_exact_effect_is_that_of_the_edit(unedited, level):
    found = estimate_effects(unedited, level)
    assert found.tokens.tolist() == candidates(unedited, level).tolist()
    wanted = list(range(len(found.tokens)))[:11]
    stages = list(measure_effects(unedited, found, wanted))
    assert len(stages) == 2
    final = stages[-1]
    for index in wanted:
        token = int(final.tokens[index])
        kind = "drop" if unedited.trace.routing.kept[level - 1, token] else "keep"
        outcome = intervene(unedited, [Edit(kind, level, str(token))])
        assert final.exact[index] == pytest.approx(outcome.answer.edited - outcome.answer.unedited, abs=1e-4)
    assert np.isnan(final.exact[11:]).all()


def test_the_estimate_is_the_derivative_by_the_weight(unedited):
    found = estimate_effects(unedited, 3)
    routing = unedited.trace.routing
    kept = [index for index, token in enumerate(found.tokens) if routing.kept[2, token]]
    for index in kept[:5]:
        token = int(found.tokens[index])
        step = 1e-2
        weight = routing.weights[2, token]

        def answer(change, token=token):
            def override(level, router, tokens):
                selection = router.select(tokens, training=False)
                if level != 3:
                    return selection
                return replace(selection, weights=selection.weights + change * (tokens.positions == token))

            with torch.inference_mode():
                output = unedited.model(unedited.ids, use_cache=False, probe=Probe(override=override))
                rows = output.logits[0, 39:41].log_softmax(-1)
            return rows.gather(1, unedited.ids[0, 40:, None]).sum().item()

        slope = (answer(step) - answer(-step)) / (2 * step)
        assert found.estimate[index] == pytest.approx(-weight * slope, abs=2e-3)


def test_the_command_does_what_the_same_edits_do_and_says_what_changed(tiny_checkpoint, checkpoint, tmp_path):
    text = "the cat sat on the mat 12"
    command = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu",
               "--prompt", text, "--answer", " dog", "--out", str(tmp_path / "edited.npz")]  # fmt: skip
    options = ["--drop", "0-5@1", "--keep", "digits@*", "--threshold=-0.2@2", "--keep", "1@1"]
    done = run_command(main, *command, *options)
    assert done.returncode == 0, done.stderr
    assert "edits: drop 0-5@1, keep digits@*, threshold -0.2@2, keep 1@1" in done.stdout
    assert "log-probability of the answer" in done.stdout
    prompt = read_prompt(text, checkpoint.tokenizer, 512)
    answer = checkpoint.tokenizer(" dog", add_special_tokens=False)["input_ids"]
    edits = parse_edits("drop 0-5@1;keep digits@*;threshold -0.2@2;keep 1@1")
    expected = intervene(run_unedited(checkpoint, prompt, answer), edits).trace
    saved = Trace.load(tmp_path / "edited.npz")
    assert saved.provenance.edits == expected.provenance.edits
    for name in ("routing", "predictions", "likelihood", "agreement"):
        ours, theirs = getattr(saved, name), getattr(expected, name)
        for entry in fields(ours):
            shown, wanted = getattr(ours, entry.name), getattr(theirs, entry.name)
            if isinstance(shown, np.ndarray) and shown.dtype.kind == "f":
                np.testing.assert_allclose(shown, wanted, rtol=1e-4, atol=1e-5, err_msg=entry.name)
            else:
                np.testing.assert_array_equal(shown, wanted, entry.name)
    refused = run_command(main, *command, "--drop", "1-2@9")
    assert refused.returncode == 1
    assert "is for Level 9" in refused.stderr
