"""`--rule FILE`: the same rule in every command that runs a checkpoint."""

import json

import pytest

from analysis import Trace
from analysis.commands import compare, edit, efficiency, evaluate, generate, trace
from analysis.debug.edits import parse_edits
from analysis.debug.rules import Rule
from tests.conftest import run_command

TEXT = "The gate 12 of the harbour opens at 7 and closes at 18."


@pytest.fixture
def rule(tmp_path):
    """A file whose rule drops nearly everything."""
    path = tmp_path / "rule.json"
    path.write_bytes(Rule("Two tokens", "Keeps two.", tuple(parse_edits("dense@*; budget 2@*; keep 'é'@*"))).written())
    return path


def run(command, checkpoint, *arguments):
    done = run_command(command.main, "--checkpoint", checkpoint, "--device", "cpu", "--dtype", "float32", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_trace_says_its_rule_and_keeps_what_the_rule_keeps(tiny_checkpoint, rule, tmp_path):
    options = ("--prompt", TEXT, "--new-tokens", 4)
    said = run(trace, tiny_checkpoint, *options, "--rule", rule, "--out", tmp_path / "ruled.npz")
    assert "rule: Two tokens (dense@*; budget 2@*)" in said and "Level 1 keeps 2 of" in said
    run(trace, tiny_checkpoint, *options, "--out", tmp_path / "plain.npz")
    found = Trace.load(tmp_path / "ruled.npz")
    assert found.routing.kept[0].tolist() == [True, True] + [False] * (found.num_tokens - 2)
    assert not found.continuation.kept[0].any()
    beside = run_command(compare.main, tmp_path / "plain.npz", tmp_path / "ruled.npz").stdout
    assert "), Two tokens: " in beside


def test_edits_follow_the_rule(tiny_checkpoint, rule):
    said = run(edit, tiny_checkpoint, "--prompt", TEXT, "--rule", rule, "--bypass", "0.5@1")
    assert "edits: dense@*, budget 2@*, bypass 0.5@1" in said and "-> 2;" in said


def test_new_tokens_are_under_the_rule(tiny_checkpoint, rule):
    said = run(generate, tiny_checkpoint, "--prompt", TEXT, "--rule", rule, "--new-tokens", 3)
    assert said.count("levels: -") == said.count(" ms ") > 0


def test_edits_and_rules_are_refused_for_the_dense_model_which_has_no_levels(tiny_checkpoint, rule):
    command = ("--checkpoint", tiny_checkpoint, "--prompt", TEXT, "--model", "dense", "--new-tokens", 1)
    for options in (("--drop", "3@1"), ("--drop", "300@9"), ("--rule", rule)):
        done = run_command(generate.main, *command, *options)
        assert done.returncode == 1 and "has no levels, so edits and rules cannot change it" in done.stderr
    assert run_command(generate.main, *command).returncode == 0


def test_quality_is_that_under_the_rule(tiny_checkpoint, rule, tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 60)
    options = ("--data", tmp_path / "text.txt", "--lengths", 40, "--blocks", 3)
    options = (*options, "--needles", 100, "--trials", 1, "--depths", 0.5)
    said = run(evaluate, tiny_checkpoint, *options, "--rule", rule, "--out", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert "Rule: Two tokens" in said and found["rule"]["name"] == "Two tokens"
    assert found["perplexity"][0]["retention"][0] == pytest.approx(2 / 40)
    assert found["needles"][0]["kept"][0] == 0
    refused = run_command(evaluate.main, *options, "--rule", rule, "--retentions", 0.5)
    assert refused.returncode == 1 and "leave out --retentions" in refused.stderr


def test_speed_is_that_under_the_rule(tiny_checkpoint, rule, tmp_path):
    options = ("--lengths", 24, "--batches", 2, "--repeats", 1, "--out", tmp_path / "out")
    said = run(efficiency, tiny_checkpoint, *options, "--rule", rule)
    assert "- rule: Two tokens (dense@*; budget 2@*; keep 'é'@*)" in said
    (table,) = (tmp_path / "out").glob("*-rule.md")
    assert "8%" in table.read_text()  # 2 of 24
    refused = run_command(efficiency.main, *options, "--rule", rule, "--retentions", 0.5)
    assert refused.returncode == 1 and "leave out --rule or --retentions" in refused.stderr


@pytest.mark.parametrize("command", [trace, edit, generate])
def test_a_file_that_is_no_rule_is_one_line(command, tiny_checkpoint, tmp_path):
    (tmp_path / "odd.json").write_text('{"format": 1, "name": "x", "description": "", "edits": ["save all@1"]}')
    done = run_command(command.main, "--checkpoint", tiny_checkpoint, "--prompt", TEXT, "--rule", tmp_path / "odd.json")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "'save all@1' cannot be read" in done.stderr
