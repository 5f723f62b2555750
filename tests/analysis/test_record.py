"""Recording: the trace says what the model did, and costs are measured."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from analysis import RunStopped
from analysis.prompt import read_prompt
from analysis.record import RunOptions, record_trace, trace_stages
from subllm.checkpoints import load_dense

from .conftest import TEXT


def test_the_trace_is_what_the_forward_recorded(trace, checkpoint):
    ids = torch.tensor(trace.token_ids)[None]
    with torch.inference_mode():
        output = checkpoint.model(ids, output_routing=True)
    for span, record in enumerate(output.routing):
        np.testing.assert_array_equal(trace.kept[span].nonzero()[0], record.kept[0])
        np.testing.assert_allclose(trace.scores[span][trace.present[span]], record.scores[0], atol=1e-5)
        np.testing.assert_allclose(trace.weights[span][trace.kept[span]], record.weights[0], atol=1e-5)
        present = trace.present[span]
        np.testing.assert_allclose(trace.contribution_norm[span][present], record.contribution_norm[0], atol=1e-4)
    probabilities = output.logits[0, -1].softmax(-1)
    np.testing.assert_allclose(trace.next_probabilities, probabilities[trace.next_ids.tolist()], atol=1e-5)
    assert trace.next_ids[0] == probabilities.argmax()


def test_the_continuation_is_what_generate_says(trace, checkpoint):
    ids = torch.tensor(trace.token_ids)[None]
    output = checkpoint.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    assert trace.new_ids.tolist() == [token for token in output if token != checkpoint.tokenizer.eos_token_id]
    assert len(trace.new_ids) > 0


def test_new_tokens_are_scored_as_they_would_be_in_the_prompt(trace, checkpoint):
    ids = torch.from_numpy(np.concatenate([trace.token_ids, trace.new_ids]))[None]
    with torch.inference_mode():
        scores = checkpoint.model(ids, output_routing=True).routing[0].scores[0]
    np.testing.assert_allclose(trace.new_scores[0], scores[trace.num_tokens :], atol=1e-4)


def test_costs_are_measured_and_cache_bytes_are_exact(trace, checkpoint):
    config = checkpoint.model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    assert trace.cost.cache_bytes == trace.block_tokens.sum() * per_token
    assert trace.dense_cost.cache_bytes == trace.num_tokens * trace.num_blocks * per_token
    assert len(trace.cost.seconds) == len(trace.dense_cost.seconds) >= 1
    assert min(*trace.cost.seconds, *trace.dense_cost.seconds) > 0
    assert trace.cost.peak_bytes > trace.cost.cache_bytes
    assert trace.provenance.dense == "routing off"


def test_without_comparison_nothing_is_measured(checkpoint):
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    trace = record_trace(checkpoint, None, prompt, RunOptions(new_tokens=0))
    assert trace.cost is None
    assert trace.dense_cost is None
    assert trace.new_ids.shape == (0,)
    assert trace.continuation == ""


def test_the_time_limit_stops_a_run_and_says_where(checkpoint):
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    with pytest.raises(RunStopped, match="time limit after 0 of 10 steps"):
        record_trace(checkpoint, None, prompt, RunOptions(seconds=-1))


def test_a_trace_grows_stage_by_stage_and_keeps_its_name(checkpoint):
    prompt = read_prompt("the cat", checkpoint.tokenizer, 512)
    seen = []
    stages = list(
        trace_stages(
            checkpoint,
            load_dense(checkpoint),
            prompt,
            RunOptions(new_tokens=3),
            progress=lambda share, stage, **values: seen.append((share, stage)),
        )
    )
    assert [(len(t.new_ids) > 0, t.cost is not None, np.isnan(t.perplexity)) for t in stages] == [
        (False, False, True),
        (True, False, True),
        (True, True, False),
    ]
    assert len({trace.digest for trace in stages}) == 1
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert list(dict.fromkeys(stage for _, stage in seen)) == [
        "reading",
        "continuing",
        "memory",
        "timing",
        "predictions",
    ]


def test_the_continuation_stops_where_positions_end(checkpoint):
    limit = checkpoint.model.config.max_position_embeddings
    prompt = read_prompt("the cat " * 400, checkpoint.tokenizer, limit, truncate=True)
    trace = record_trace(checkpoint, None, prompt, RunOptions(new_tokens=5))
    assert trace.num_tokens == limit
    assert len(trace.new_ids) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_records_the_same_routing_as_the_cpu(trace, tiny_checkpoint):
    from subllm.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(tiny_checkpoint, "cuda", "float32")
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    found = record_trace(checkpoint, load_dense(checkpoint), prompt, RunOptions(new_tokens=12))
    np.testing.assert_array_equal(found.kept, trace.kept)
    np.testing.assert_allclose(found.scores, trace.scores, atol=1e-3)
    assert found.cost.peak_bytes > 0


def test_change_is_what_each_block_added_to_the_tokens_it_processed(trace, checkpoint):
    states = []
    ids = torch.tensor(trace.token_ids)[None]
    with torch.inference_mode():
        checkpoint.model.model(
            ids, observer=lambda state: states.append((state.symbol, state.hidden_states[0].clone()))
        )
    np.testing.assert_array_equal(~np.isnan(trace.change), trace.processed)
    block = 0
    for (_, before), (symbol, after) in pairwise(states):
        if symbol == "T":
            expected = (after - before).norm(dim=-1) / before.norm(dim=-1)
            np.testing.assert_allclose(trace.change[block][trace.processed[block]], expected, rtol=2e-3)
            block += 1
    assert block == trace.num_blocks
