"""Other rules in place of the routers: equal shares, honest intervals, and an oracle that is one where it can be."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import AnalysisError
from analysis.commands.rivals import NAMES, main
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import parse_edits
from analysis.debug.rules import Rule
from analysis.quality.paired import paired_interval, student_quantile
from analysis.quality.rivals import (
    Comparison,
    Outcome,
    RuleRun,
    compare_rules,
    oracle_passes,
    passes,
    replaceable,
)
from analysis.quality.selection_rules import DRAWS, SelectionRule
from analysis.run import RunOptions, record_trace
from subllm import Probe, Selection
from subllm.checkpoints.dense import DenseModel, routing_off
from tests.analysis.debug.test_intervene import checkpoint_of, prompt_of
from tests.conftest import run_command, tiny_model

LENGTH = 40


def subject(structure="T(T(T)T)(T)T", length=LENGTH, **fields):
    """A checkpoint, its dense model, and a trace of a prompt of random tokens."""
    checkpoint = checkpoint_of(tiny_model(structure, **fields))
    ids = torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(0)).numpy()
    dense = DenseModel(routing_off(checkpoint.model), is_twin=False)
    options = RunOptions(new_tokens=0, compare=False)
    return checkpoint, dense, record_trace(checkpoint, prompt_of(ids), options)


def compared(*what, **options):
    *_, found = compare_rules(*what, **options)
    return found


@pytest.mark.parametrize("router", ["subllm", "mod", "even", "random"])
@pytest.mark.parametrize("answer", [[], [5, 9, 33]])
def test_every_rule_keeps_as_many_tokens_as_the_run_out_of_those_that_reach_the_level(router, answer):
    checkpoint, dense, trace = subject(router=router)
    found = compared(checkpoint, dense, trace, answer, oracle=True, occurrences=trace.prompt.token_ids)
    routing = trace.routing
    assert len(found.runs) == DRAWS + len(SelectionRule)  # the recorded run twice
    assert {run.rule for run in found.runs} == {*SelectionRule}
    assert len(found.of(SelectionRule.RANDOM)) == DRAWS
    for run in found.runs:
        np.testing.assert_array_equal(run.kept.sum(1), routing.kept.sum(1), err_msg=run.name)
        for level, parent in zip(routing.levels, routing.parents.tolist(), strict=True):
            assert parent == 0 or not (run.kept[level - 1] & ~run.kept[parent - 1]).any(), run.name
    for run in found.of(SelectionRule.RECORDED) + found.of(SelectionRule.RECORDED, own_weights=True):
        np.testing.assert_array_equal(run.kept, routing.kept)
    assert all(np.isnan(run.answer) == (not answer) for run in found.runs)


def test_the_run_with_its_own_weights_is_the_recorded_one():
    checkpoint, dense, trace = subject()
    (own,) = compared(checkpoint, dense, trace).of(SelectionRule.RECORDED, own_weights=True)
    with torch.inference_mode():
        logits = checkpoint.model(torch.tensor(trace.prompt.token_ids)[None]).logits[0]
        beside = dense.model(torch.tensor(trace.prompt.token_ids)[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(trace.prompt.token_ids[1:]), reduction="none")
    np.testing.assert_allclose(own.surprisal[1:], losses, atol=1e-4)
    np.testing.assert_array_equal(own.agrees, logits.argmax(-1) == beside.argmax(-1))


def test_a_rule_is_run_as_an_override_that_gives_its_tokens_a_weight_of_one():
    """Batches and the state that they resume from change nothing."""
    checkpoint, dense, trace = subject()
    ids = torch.tensor(trace.prompt.token_ids)[None]
    for run in compared(checkpoint, dense, trace, oracle=True).runs[1:]:
        kept = torch.tensor(run.kept)

        def decide(level, router, tokens, kept=kept):
            return Selection.of(tokens, kept[level - 1][tokens.positions], torch.ones(tokens.positions.shape))

        with torch.inference_mode():
            logits = checkpoint.model(ids, probe=Probe(override=decide)).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        np.testing.assert_allclose(run.surprisal[1:], losses, atol=1e-4, err_msg=run.name)


def test_the_answers_probability_is_that_of_the_model_that_reads_it():
    checkpoint, dense, trace = subject()
    ids = [*trace.prompt.token_ids.tolist(), 5, 9]
    found = compared(checkpoint, dense, trace, [5, 9])
    (own,) = found.of(SelectionRule.RECORDED, own_weights=True)
    with torch.inference_mode():
        for model, answer in ((checkpoint.model, own.answer), (dense.model, found.dense_answer)):
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            assert answer == pytest.approx((logprobs[-3, 5] + logprobs[-2, 9]).item(), abs=1e-4)
    likeliest = int(trace.predictions.next_ids[0])
    assert compared(checkpoint, dense, trace, [likeliest]).runs[0].found
    assert not compared(checkpoint, dense, trace, [(likeliest + 1) % 97]).runs[0].found


def test_rules_keep_what_they_say():
    checkpoint, dense, trace = subject("T(T)T")
    found = compared(checkpoint, dense, trace)
    kept = int(trace.routing.kept[0].sum())

    def tokens(rule):
        return found.of(rule)[0].kept[0].nonzero()[0]

    gaps = np.diff(tokens(SelectionRule.EVEN))
    assert tokens(SelectionRule.EVEN)[0] == 0 and gaps.max() - gaps.min() <= 1
    assert tokens(SelectionRule.ENDS).tolist() == [0, 1, 2, 3, *range(LENGTH - kept + 4, LENGTH)]
    highest = np.argsort(-np.nan_to_num(found.dense_surprisal, nan=np.inf), kind="stable")[:kept]
    assert set(tokens(SelectionRule.SURPRISAL)) == set(highest)
    assert not found.of(SelectionRule.RARE)  # nobody said how often they occur
    highest = np.argsort(-trace.routing.stream_norm[0], kind="stable")[:kept]
    assert set(tokens(SelectionRule.NORM)) == set(highest)


def test_the_oracle_finds_the_best_set_where_tokens_do_not_depend_on_each_other():
    checkpoint, dense, trace = subject("T(T)T", length=9)
    model, ids = checkpoint.model, torch.tensor(trace.prompt.token_ids)[None]
    for block in model.model.layers[1:]:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    options = RunOptions(new_tokens=0, compare=False)
    trace = record_trace(checkpoint, trace.prompt, options)
    found = compared(checkpoint, dense, trace, oracle=True)
    count = int(trace.routing.kept[0].sum())
    assert 2 <= count <= 7

    def loss(kept):
        flags = torch.zeros(9, dtype=torch.bool)
        flags[list(kept)] = True
        probe = Probe(override=lambda level, router, tokens: Selection.of(tokens, flags[None], torch.ones(1, 9)))
        with torch.inference_mode():
            return torch.nn.functional.cross_entropy(model(ids, probe=probe).logits[0, :-1], ids[0, 1:]).item()

    losses = [loss(kept) for kept in combinations(range(9), count)]
    (oracle,) = found.of(SelectionRule.ORACLE)
    assert oracle.loss == pytest.approx(min(losses), abs=1e-5)
    assert all(oracle.loss < run.loss for run in found.of(SelectionRule.RANDOM))


def test_the_same_seed_gives_the_same_draws_and_another_one_others():
    what = subject()
    first, again, other = (compared(*what, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first.runs, again.runs, strict=True):
        np.testing.assert_array_equal(a.surprisal, b.surprisal)
    assert first.verdict() == again.verdict()
    draws = [run.kept for run in first.of(SelectionRule.RANDOM) + other.of(SelectionRule.RANDOM)]
    assert len({each.tobytes() for each in draws}) == 2 * DRAWS


def constructed(losses, tokens=200):
    """A comparison of rules with given surprisals."""

    def run(rule, draw, surprisal):
        rows = np.concatenate([[np.nan], surprisal]).astype(np.float32)
        return RuleRun(rule, draw, False, np.zeros((1, tokens)), rows, rows, rows > 0, float("nan"), False)

    runs = []
    for rule in SelectionRule:
        draws = range(1, DRAWS + 1) if rule == SelectionRule.RANDOM else (0,)
        runs += [run(rule, draw, losses(rule, tokens - 1)) for draw in draws]
    prompt = prompt_of(np.ones(tokens, dtype=np.int64))
    nothing = np.full(tokens, np.nan)
    return Comparison(prompt, "twin", (1,), 0, nothing, float("nan"), False, tuple(runs))


def test_identical_rules_are_told_apart_by_nobody():
    rng = np.random.default_rng(0)
    noise = rng.gamma(2, size=199)
    verdict = constructed(lambda rule, n: noise[:n]).verdict()
    assert verdict.outcome == Outcome.OPEN
    assert verdict.difference == (0, 0, 0)
    verdict = constructed(lambda rule, n: rng.gamma(2, size=n)).verdict()
    assert verdict.outcome == Outcome.OPEN
    assert verdict.difference.low < 0 < verdict.difference.high


@pytest.mark.parametrize(("shift", "outcome"), [(1.0, Outcome.BETTER), (-1.0, Outcome.WORSE)])
def test_a_clear_difference_is_found(shift, outcome):
    rng = np.random.default_rng(0)
    verdict = constructed(lambda rule, n: rng.gamma(2, size=n) + 2 + shift * rule.simple).verdict()
    assert verdict.outcome == outcome
    assert verdict.difference.mean == pytest.approx(shift, abs=0.5)


def test_one_better_rule_is_enough_and_a_better_oracle_is_not():
    rng = np.random.default_rng(0)
    verdict = constructed(lambda rule, n: rng.gamma(2, size=n) + 2 - (rule == SelectionRule.NORM)).verdict()
    assert verdict.outcome == Outcome.WORSE and verdict.rule == SelectionRule.NORM
    verdict = constructed(lambda rule, n: rng.gamma(2, size=n) + 3 + rule.simple - (rule == "oracle")).verdict()
    assert verdict.outcome == Outcome.BETTER


def test_an_open_verdict_names_the_best_rule_by_mean_of_those_that_cannot_be_told_from_the_recorded_one():
    rng = np.random.default_rng(0)
    noise = {rule: rng.permutation(np.resize([-1.0, 1.0], 199)) for rule in SelectionRule}
    scales = {SelectionRule.NORM: (0.1, 1.0), SelectionRule.EVEN: (0.5, 20.0)}

    def losses(rule, n):
        shift, scale = scales.get(rule, (3.0 * rule.simple, 0.0))
        return 50 + shift + scale * noise[rule]

    verdict = constructed(losses).verdict()
    assert verdict.outcome == Outcome.OPEN and verdict.rule == SelectionRule.NORM  # the other's interval is wider
    scales[SelectionRule.NORM] = (0.1, 0.0)  # better told apart
    verdict = constructed(losses).verdict()
    assert verdict.outcome == Outcome.OPEN and verdict.rule == SelectionRule.EVEN


def test_a_short_text_gets_no_verdict():
    assert constructed(lambda rule, n: np.arange(n) + rule.simple, tokens=20).verdict().outcome == Outcome.SHORT


def test_intervals_of_dependent_differences_hold_the_mean_about_as_often_as_they_say():
    """Each difference depends on its neighbours, as those of tokens do; taken for independent, it would be 60%."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        noise = rng.normal(size=403)
        found = paired_interval((noise[3:] + noise[2:-1] + noise[1:-2] + noise[:-3])[None], 0.1)
        held += found.low <= 0 <= found.high
    assert 0.8 <= held / 200 <= 0.96


@pytest.mark.parametrize("draws", [1, DRAWS])
@pytest.mark.parametrize("tokens", [32, 64, 200, 400])
@pytest.mark.parametrize("chance", [0.05, 0.01])
def test_intervals_of_independent_differences_hold_the_mean_as_often_as_they_say(tokens, draws, chance):
    rng = np.random.default_rng(tokens)
    found = [paired_interval(rng.normal(size=(draws, tokens)), chance) for _ in range(1000)]
    missed = np.mean([not each.low <= 0 <= each.high for each in found])
    assert missed <= chance + 3 * (chance * (1 - chance) / 1000) ** 0.5


def test_intervals_of_draws_that_differ_as_a_whole_hold_the_mean_of_all_draws():
    rng = np.random.default_rng(0)
    found = [
        paired_interval(rng.normal(size=(DRAWS, 1)) + 0.1 * rng.normal(size=(DRAWS, 100)), 0.05) for _ in range(1000)
    ]
    assert np.mean([not each.low <= 0 <= each.high for each in found]) <= 0.07


def test_intervals_of_too_few_tokens_have_no_bounds_and_those_of_equal_differences_no_width():
    assert np.isnan(paired_interval(np.zeros((1, 0)))).all()
    assert paired_interval(np.ones((1, 1))) == (1, -np.inf, np.inf)
    assert paired_interval(np.ones((2, 3))) == (1, 1, 1)


@pytest.mark.parametrize(  # Student's table
    ("chance", "freedom", "quantile"),
    [(0.05, 1, 12.706), (0.05, 2, 4.303), (0.01, 4, 4.604), (0.01, 10, 3.169), (0.05, 30, 2.042), (0.01, 1000, 2.581)],
)
def test_the_quantile_is_students(chance, freedom, quantile):
    assert student_quantile(chance, freedom) == pytest.approx(quantile, abs=6e-4)


def test_a_model_without_levels_and_a_long_prompt_for_the_oracle_are_refused():
    checkpoint, dense, trace = subject("TT")
    assert passes(trace) == 0 and oracle_passes(trace) == 0
    with pytest.raises(AnalysisError, match="no level at which a router keeps or drops"):
        compared(checkpoint, dense, trace)
    checkpoint, dense, trace = subject(length=200)
    assert oracle_passes(trace) == 0
    with pytest.raises(AnalysisError, match="at most 256 passes"):
        compared(checkpoint, dense, trace, oracle=True)


def test_merging_levels_are_left_out_and_route_as_ever():
    checkpoint, dense, trace = subject("T(T(T)T)T", router=["stride", "subllm"], retention_ratio=[0.5, 0.5])
    assert replaceable(trace.routing) == [2]
    found = compared(checkpoint, dense, trace, [5, 9], oracle=True)
    assert found.levels == (2,)
    for run in found.runs:
        np.testing.assert_array_equal(run.kept[0], trace.routing.kept[0])
        assert run.kept[1].sum() == trace.routing.kept[1].sum()


@pytest.mark.parametrize(
    ("structure", "fields", "level", "edits"),
    [
        ("T(T)T(T)T", {"router": ["stride", "subllm"], "retention_ratio": [0.5, 0.5]}, 1, "dense@1"),
        ("T(T(T)T)T", {"router": ["subllm", "stride"], "retention_ratio": [0.5, 0.5]}, 2, "dense@2"),
        ("C(T)T", {"num_attention_heads": 4, "num_key_value_heads": 4}, 3, "keep 0-9@3; threshold 0.1@2"),
    ],
)
def test_edits_of_the_run_at_levels_that_are_left_out_stay_in_force_under_every_rule(structure, fields, level, edits):
    checkpoint, dense, plain = subject(structure, **fields)
    rule = Rule("edited", "", tuple(parse_edits(edits)))
    trace = record_trace(checkpoint, plain.prompt, RunOptions(new_tokens=0, compare=False, rule=rule))
    assert level not in replaceable(trace.routing)
    found = compared(checkpoint, dense, trace, [5, 9], oracle=True)
    parent = int(trace.routing.parents[level - 1])
    for run in found.runs:
        reached = run.kept[parent - 1] if parent else np.ones(LENGTH, dtype=bool)
        if edits.startswith("dense"):
            np.testing.assert_array_equal(run.kept[level - 1], reached, err_msg=run.name)
        else:
            np.testing.assert_array_equal(run.kept[:3], trace.routing.kept[:3], err_msg=run.name)
    (own,) = found.of(SelectionRule.RECORDED, own_weights=True)
    with torch.inference_mode():
        ids = torch.tensor(trace.prompt.token_ids)[None]
        override = EditOverride(rule.edits, trace.prompt)
        logits = checkpoint.model(ids, probe=Probe(override=override)).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    np.testing.assert_allclose(own.surprisal[1:], losses, atol=1e-4)


@pytest.mark.parametrize(
    ("structure", "fields", "replaced"),
    [
        ("T(T)T(T)T", {"router": ["stride", "mod"], "retention_ratio": [0.5, 0.5]}, 2),
        ("CT(T)T", {"num_attention_heads": 4, "num_key_value_heads": 4}, 4),
    ],
)
def test_runs_that_resume_behind_levels_left_out_have_the_routing_of_those(structure, fields, replaced):
    checkpoint, dense, trace = subject(structure, **fields)
    found = compared(checkpoint, dense, trace)
    assert found.levels == (replaced,)
    for run in found.runs:
        np.testing.assert_array_equal(run.kept[: replaced - 1], trace.routing.kept[: replaced - 1])


def test_light_heavy_blocks_are_left_out_and_decide_as_ever():
    checkpoint, dense, trace = subject("T(C)CT", num_attention_heads=4, num_key_value_heads=4)
    found = compared(checkpoint, dense, trace, [5, 9], oracle=True)
    assert [str(trace.routing.site_kinds[level - 1]) for level in found.levels] == ["level"]
    for run in found.runs:
        np.testing.assert_array_equal(run.kept.sum(1)[0], trace.routing.kept.sum(1)[0])


def test_progress_reaches_the_end_and_can_stop():
    checkpoint, dense, trace = subject()
    seen = []

    def progress(share, stage, **values):
        seen.append((stage, values["done"], values["total"]))
        if len(seen) == stop:
            raise KeyboardInterrupt

    stop = 0
    compared(checkpoint, dense, trace, oracle=True, progress=progress)
    assert {stage for stage, _, _ in seen} == {"rules"}
    assert seen[0][1] == 0 and seen[-1][1] == seen[-1][2] == passes(trace) + oracle_passes(trace)
    stop = len(seen) + 3
    with pytest.raises(KeyboardInterrupt):
        compared(checkpoint, dense, trace, progress=progress)
    assert len(seen) == stop


def test_the_command_prints_every_rule_and_saves_every_token(tiny_checkpoint, tmp_path):
    out = tmp_path / "rules.csv"
    text = "the cat sat on the mat and then the dog"
    done = run_command(
        main, "--checkpoint", tiny_checkpoint, "--device", "cpu", "--prompt", text, "--answer", " sat", "--oracle",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all((name in done.stdout) == (rule != SelectionRule.RARE) for rule, name in NAMES.items())
    assert "its own weights" in done.stdout and "too short for a verdict" in done.stdout
    saved = pd.read_csv(out, dtype={f"kept, {rule}": str for rule in SelectionRule})
    assert saved.filter(like="surprisal, ").shape == (len(saved), DRAWS + len(SelectionRule))
    assert set(saved["kept, oracle"].dropna()) <= {"1", "1 2"}


def test_the_table_is_sorted_by_loss_and_averages_the_draws():
    checkpoint, dense, trace = subject()
    found = compared(checkpoint, dense, trace, [5], oracle=True)
    rows = found.table()
    assert [row.loss for row in rows] == sorted(row.loss for row in rows)
    (random,) = [row for row in rows if row.rule == SelectionRule.RANDOM]
    runs = found.of(SelectionRule.RANDOM)
    assert random.draws == DRAWS and random.loss == pytest.approx(np.mean([run.loss for run in runs]))
    assert random.answer == pytest.approx(np.mean([run.answer for run in runs]))
    (own,) = [row for row in rows if row.own_weights]
    (same,) = [row for row in rows if row.rule == SelectionRule.RECORDED and not row.own_weights]
    assert own.shared == same.shared == 1 and same.difference == (0, 0, 0)
    assert own.difference.mean == pytest.approx(own.loss - same.loss, abs=1e-5)
