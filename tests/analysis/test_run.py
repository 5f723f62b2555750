"""Recording: the trace says what the model did, and costs are measured."""

import numpy as np
import pytest
import torch

import analysis
from analysis import RunStopped
from analysis.run import RunOptions, record_trace, trace_stages
from analysis.trace.tokenize import read_prompt
from subllm import PromptTooLongError
from subllm.checkpoints.dense import load_dense

from .conftest import TEXT


def test_the_trace_is_what_the_forward_recorded(trace, checkpoint):
    ids = torch.tensor(trace.prompt.token_ids)[None]
    with torch.inference_mode():
        output = checkpoint.model(ids, output_routing=True)
    for number, record in enumerate(output.routing):
        for name in ("reached", "kept", "weights", "scores", "stream_norm", "difference_norm", "contribution_norm"):
            recorded = getattr(trace.routing, name)[number]
            np.testing.assert_allclose(recorded, getattr(record, name)[0], atol=1e-4, err_msg=name)
        assert trace.routing.thresholds[number] == record.threshold == 0
    assert not trace.routing.edited.any() and trace.routing.routers.tolist() == ["subllm", "subllm"]
    probabilities, found = output.logits[0, -1].softmax(-1), trace.predictions
    np.testing.assert_allclose(found.next_probabilities, probabilities[found.next_ids.tolist()], atol=1e-5)
    assert found.next_ids[0] == probabilities.argmax()


def test_the_continuation_is_what_generate_says(trace, checkpoint):
    ids = torch.tensor(trace.prompt.token_ids)[None]
    output = checkpoint.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    written = trace.continuation.ids.tolist()
    assert written == [token for token in output if token != checkpoint.tokenizer.eos_token_id]
    assert len(written) > 0


def test_what_is_decided_about_new_tokens_is_what_would_be_in_the_prompt(trace, checkpoint):
    ids = torch.from_numpy(np.concatenate([trace.prompt.token_ids, trace.continuation.ids]))[None]
    with torch.inference_mode():
        routing = checkpoint.model(ids, output_routing=True).routing
    for number, record in enumerate(routing):
        for name in ("reached", "kept", "weights", "scores"):
            whole = getattr(record, name)[0, trace.num_tokens :]
            np.testing.assert_allclose(getattr(trace.continuation, name)[number], whole, atol=1e-4, err_msg=name)


def test_costs_are_measured_and_cache_bytes_are_exact(trace, checkpoint):
    config = checkpoint.model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * 4
    ours, dense = trace.costs.subllm, trace.costs.dense
    assert ours.cache_bytes == trace.routing.block_tokens.sum() * per_token
    assert dense.cache_bytes == trace.num_tokens * trace.routing.num_blocks * per_token
    assert len(ours.seconds) == len(dense.seconds) >= 1
    assert min(*ours.seconds, *dense.seconds) > 0
    assert ours.peak_bytes > ours.cache_bytes
    assert trace.provenance.dense == "routing off"


def test_without_comparison_nothing_is_measured(checkpoint):
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=0))
    assert trace.costs is trace.continuation is trace.agreement is trace.likelihood is None


def test_text_alone_is_enough_for_a_trace(checkpoint, trace):
    found = analysis.record_trace(checkpoint, TEXT)
    np.testing.assert_array_equal(found.routing.kept, trace.routing.kept)
    np.testing.assert_array_equal(found.prompt.token_ids, trace.prompt.token_ids)
    assert found.continuation.text.startswith(trace.continuation.text)
    assert found.provenance.checkpoint == checkpoint.folder.name
    with pytest.raises(PromptTooLongError, match="at most 512"):
        analysis.record_trace(checkpoint, "the cat " * 400)


def test_the_time_limit_stops_a_run_and_says_what_helps(checkpoint):
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    with pytest.raises(RunStopped, match=r"time limit was reached\. Shorten the prompt"):
        record_trace(checkpoint, prompt, RunOptions(seconds=-1))


def test_a_trace_grows_stage_by_stage_and_keeps_its_name(checkpoint):
    prompt = read_prompt("the cat", checkpoint.tokenizer, 512)
    seen = []
    stages = list(
        trace_stages(
            checkpoint,
            prompt,
            RunOptions(new_tokens=3),
            dense=load_dense(checkpoint),
            progress=lambda share, stage, **values: seen.append((share, stage)),
        )
    )
    assert [(t.continuation is not None, t.costs is not None, np.isnan(t.perplexity)) for t in stages] == [
        (False, False, True),
        (True, False, True),
        (True, True, False),
    ]
    assert len({trace.run for trace in stages}) == 1
    assert len({trace.digest for trace in stages}) == 3
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert list(dict.fromkeys(stage for _, stage in seen)) == [
        "reading",
        "continuing",
        "memory",
        "timing",
        "predictions",
    ]


def test_a_run_that_is_stopped_loses_no_token_of_its_continuation(checkpoint):
    whole = record_trace(checkpoint, "the cat", RunOptions(8, compare=False))
    found = []

    def stop(share, stage, *, done=0, **values):
        if stage == "continuing" and done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(trace_stages(checkpoint, "the cat", RunOptions(8), progress=stop, so_far=found.append))
    assert [len(trace.continuation.ids) for trace in found] == [1, 2, 3, 4, 5]
    last, rest = found[-1].continuation, whole.continuation
    assert found[-1].run == whole.run and last.text and rest.text.startswith(last.text)
    for name in ("ids", "pieces", "reached", "kept", "weights", "scores"):
        np.testing.assert_array_equal(getattr(last, name), getattr(rest, name)[..., :5])


def test_the_continuation_stops_where_positions_end(checkpoint):
    limit = checkpoint.model.config.max_position_embeddings
    prompt = read_prompt("the cat " * 400, checkpoint.tokenizer, limit, truncate=True)
    trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=5))
    assert trace.num_tokens == limit
    assert trace.continuation is None


@pytest.mark.gpu
def test_a_gpu_records_the_same_routing_as_the_cpu(trace, tiny_checkpoint):
    from subllm.checkpoints.load import load_checkpoint

    checkpoint = load_checkpoint(tiny_checkpoint, "cuda", "float32")
    prompt = read_prompt(TEXT, checkpoint.tokenizer, 512)
    found = record_trace(checkpoint, prompt, RunOptions(new_tokens=12), dense=load_dense(checkpoint))
    np.testing.assert_array_equal(found.routing.kept, trace.routing.kept)
    np.testing.assert_allclose(found.routing.scores, trace.routing.scores, atol=1e-3)
    assert found.costs.subllm.peak_bytes > 0


def test_change_is_what_each_block_added_to_the_tokens_it_processed(trace, checkpoint):
    layers, seen = checkpoint.model.model.layers, []
    hooks = [
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0][0].clone(), output[0].clone())))
        for layer in layers
    ]
    with torch.inference_mode():
        checkpoint.model.model(torch.tensor(trace.prompt.token_ids)[None])
    for hook in hooks:
        hook.remove()
    change, processed = trace.blocks.change, trace.routing.processed
    np.testing.assert_array_equal(~np.isnan(change), processed)
    assert len(seen) == len(change) == trace.routing.num_blocks
    for block, (before, after) in enumerate(seen):
        expected = (after - before).norm(dim=-1) / before.norm(dim=-1)
        np.testing.assert_allclose(change[block][processed[block]], expected, rtol=2e-3)
