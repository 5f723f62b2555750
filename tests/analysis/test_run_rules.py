"""Runs with a rule: what the trace records, what follows the prompt, and what files and names tell of it."""

import io

import numpy as np
import pytest
import torch

from analysis import AnalysisError, Trace
from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import parse_edits
from analysis.debug.rules import Rule
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm import Probe
from subllm.checkpoints.dense import load_dense
from subllm.routing import routing_arrays

TEXT = "The gate 12 of the harbour opens at 7 and closes at 18."


def rule_of(line):
    return Rule("Under test", "A rule of a test.", tuple(parse_edits(line)))


def run(checkpoint, line, **options):
    rule = None if line is None else rule_of(line)
    return record_trace(checkpoint, TEXT, RunOptions(8, compare=False, rule=rule), **options)


@pytest.mark.parametrize(
    "line", ["keep digits@*", "keep last 5@*", "budget 4@*", "retention 0.5@*", "drop 0-3@1; budget 9@1; keep last 2@*"]
)
def test_prompt_and_continuation_are_kept_as_one_pass_over_both_keeps_them(checkpoint, line):
    trace = run(checkpoint, line)
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    found = trace.continuation
    ids = torch.tensor([[*prompt.token_ids.tolist(), *found.ids.tolist()]])
    with torch.inference_mode():
        override = EditOverride(rule_of(line).edits, prompt)
        whole = routing_arrays(checkpoint.model(ids, probe=Probe(record=True, override=override)).routing, ids.shape[1])
    np.testing.assert_array_equal(np.concatenate([trace.routing.kept, found.kept], axis=1), whole["kept"])
    np.testing.assert_allclose(
        np.concatenate([trace.routing.weights, found.weights], axis=1), whole["weights"], atol=1e-5
    )


def test_a_trace_names_its_rule_and_what_it_came_to(checkpoint):
    trace = run(checkpoint, "keep digits@*; keep system@*; keep 0-999@1")
    where = trace.provenance
    last = trace.num_tokens - 1
    assert (where.rule, where.edits) == ("Under test", ("keep digits@*", f"keep 0-{last}@1"))
    file = io.BytesIO()
    trace.save(file)
    file.seek(0)
    assert Trace.load(file).provenance == where
    plain = run(checkpoint, None)
    assert (plain.provenance.rule, plain.provenance.edits) == ("", ()) and plain.run != trace.run


def test_a_rule_that_finds_nothing_changes_nothing_but_the_name(checkpoint):
    trace, plain = run(checkpoint, "keep system@*"), run(checkpoint, None)
    assert trace.provenance.rule == "Under test" and trace.provenance.edits == ()
    np.testing.assert_array_equal(trace.routing.kept, plain.routing.kept)
    assert trace.continuation.text == plain.continuation.text


def test_cost_and_agreement_are_those_of_the_run_with_the_rule(checkpoint):
    options = RunOptions(0, rule=rule_of("drop 1-99@*"))
    dense = load_dense(checkpoint)
    trace = record_trace(checkpoint, TEXT, options, dense=dense)
    plain = record_trace(checkpoint, TEXT, RunOptions(0), dense=dense)
    assert trace.routing.kept.sum() <= len(trace.routing.levels)
    assert trace.costs.subllm.cache_bytes < plain.costs.subllm.cache_bytes
    assert not np.allclose(trace.agreement.divergence, plain.agreement.divergence)


def test_a_rule_for_another_model_is_refused(checkpoint):
    with pytest.raises(AnalysisError, match="The rule 'Under test' does not fit this model"):
        run(checkpoint, "dense@9")
