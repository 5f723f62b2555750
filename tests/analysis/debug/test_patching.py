"""States of one prompt in the run of another, against runs that are known to be equal."""

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.commands import patch as command
from analysis.debug.intervene import run_unedited
from analysis.debug.patching import Patch, patch_levels, run_patched
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.load import load_checkpoint
from tests.conftest import run_command, tiny_model

FIRST, SECOND = "the cat sat on the mat and then", "the dog sat on the mat and then"


def read(checkpoint, text, answer=()):
    return run_unedited(checkpoint, read_prompt(text, checkpoint.tokenizer, 512), answer, "tiny")


@pytest.fixture(scope="module")
def runs(checkpoint):
    first, second = read(checkpoint, FIRST, [7, 9]), read(checkpoint, SECOND)
    assert first.num_tokens == second.num_tokens
    assert np.flatnonzero(first.trace.prompt.token_ids != second.trace.prompt.token_ids).tolist() == [1]
    return first, second


def test_a_states_own_place_changes_nothing(runs):
    first, _ = runs
    for found in patch_levels(first, first, 0, 0):
        level = found.patch.level
        assert found.distance == 0 and not found.flipped.any() and np.isnan(found.moved)
        np.testing.assert_array_equal(found.trace.routing.weights, first.trace.routing.weights)
        assert found.answer.edited == found.answer.unedited
        assert found.trace.provenance.patch.startswith(f"token 0 of another prompt for token 0 before Level {level}, ")
        assert found.trace.run != first.trace.run


def test_before_all_blocks_the_state_of_the_token_that_differs_makes_the_other_run(
    tiny_checkpoint, tmp_path, checkpoint
):
    model = tiny_model("(T(T)T)T", vocab_size=checkpoint.model.config.vocab_size, max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    loaded = load_checkpoint(tmp_path, "cpu", "float32")
    first, second = read(loaded, FIRST), read(loaded, SECOND)
    found = run_patched(first, second, Patch(1, 1, 1))
    np.testing.assert_array_equal(found.trace.routing.kept, second.trace.routing.kept)
    np.testing.assert_allclose(found.trace.routing.scores, second.trace.routing.scores, atol=1e-5)
    np.testing.assert_allclose(found.next_probabilities[1], found.next_probabilities[2], atol=1e-5)
    assert found.moved == pytest.approx(1, abs=1e-3)
    flipped = second.trace.routing.kept.astype(int) - first.trace.routing.kept.astype(int)
    np.testing.assert_array_equal(found.flipped, flipped)


def test_the_router_sees_the_state_of_the_other_token_and_nothing_before_it_changes(runs):
    first, second = runs
    token = int(np.flatnonzero(first.trace.routing.kept[0] & second.trace.routing.kept[0])[-1])
    for found in patch_levels(first, second, token, token):
        row = found.patch.level - 1
        assert found.trace.routing.scores[row, token] == pytest.approx(
            second.trace.routing.scores[row, token], abs=1e-6
        )
        np.testing.assert_array_equal(found.trace.routing.scores[:row], first.trace.routing.scores[:row])
        np.testing.assert_array_equal(found.trace.routing.scores[row, :token], first.trace.routing.scores[row, :token])
        assert found.next_probabilities.shape == (3, len(found.next_pieces)) and found.distance > 0


def test_what_cannot_be_patched_is_refused_in_a_sentence(runs, odd_checkpoints):
    first, second = runs
    lost = int(np.flatnonzero(~first.trace.routing.reached[1])[0])
    for patch, said in (
        (Patch(2, lost, 0), f"Token {lost} does not reach Level 2"),
        (Patch(3, 0, 0), "no Level 3"),
        (Patch(1, 99, 0), "no token 99"),
        (Patch(1, 0, 99), "no token 99"),
    ):
        with pytest.raises(AnalysisError, match=said):
            run_patched(first, second, patch)
    dense = read(load_checkpoint(odd_checkpoints / "no-levels", "cpu", "float32"), FIRST)
    with pytest.raises(AnalysisError, match="has no levels"):
        list(patch_levels(dense, dense, 0, 0))
    with pytest.raises(AnalysisError, match="same checkpoint"):
        run_patched(first, dense, Patch(1, 0, 0))


def test_the_command_patches_before_one_level_or_before_each(tiny_checkpoint, tmp_path):
    options = ("--checkpoint", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "--prompt", FIRST)
    options = (*options, "--other", SECOND, "--token", 1)
    done = run_command(command.main, *options)
    assert done.returncode == 0, done.stderr
    assert "' cat' (token 1) becomes ' dog' (token 1)" in done.stdout and "before Level 1: " in done.stdout
    done = run_command(command.main, *options, "--level", 1, "--answer", " sat", "--out", tmp_path / "patched.npz")
    assert done.returncode == 0, done.stderr
    assert (
        "log-probability of the answer: " in done.stdout and "next token: without, with, after the other" in done.stdout
    )
    assert (tmp_path / "patched.npz").exists()
    refused = run_command(command.main, *options, "--out", tmp_path / "none.npz")
    assert refused.returncode == 1 and "--level" in refused.stderr
