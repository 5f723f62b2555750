"""The benchmark: operations are counted as torch counts them, and the command reports what it measured."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis.efficiency import Comparison, benchmark_text
from analysis.operations import attention_operations, decode_operations, linear_operations, prefill_operations
from tests.conftest import tiny_model


@pytest.mark.parametrize("structure", ["TTT", "T(T)T", "T(T(TT)T)(T)"])
def test_operations_equal_what_torch_counts(structure):
    model = tiny_model(structure, attn_implementation="eager")
    ids = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            output = model(ids, output_routing=True, logits_to_keep=1)
        levels = [40, *(record.kept.shape[1] for record in output.routing)]
        tokens = [levels[0 if s is None else s + 1] for s in model.config.parsed_structure.block_spans]
    # eager attention computes all T² pairs, a causal kernel T(T+1)/2 of them
    extra = sum(attention_operations(model.config, n * n - n * (n + 1) // 2) for n in tokens)
    assert counter.get_total_flops() == prefill_operations(model.config, tokens) + extra


def test_one_token_decoded_is_the_difference_of_two_prompts():
    config = tiny_model("TTT").config
    head = prefill_operations(config, [0, 0, 0])
    more = prefill_operations(config, [11, 11, 11]) - prefill_operations(config, [10, 10, 10])
    assert decode_operations(config, [11, 11, 11]) == more + head
    assert decode_operations(config, []) == head
    assert linear_operations(config) == 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)


def comparison(seconds, steps=(), decode_blocks=()):
    return Comparison("T(T)T", 10, [0.5], seconds, 1.0, 1.0, (1, 2), (1, 2), list(steps), list(decode_blocks))


def test_ratios_are_of_passes_in_turn_and_spread_is_of_all():
    row = comparison({"a": [1.0, 4.0, 6.0], "b": [1.0, 1.0, 3.0]})
    assert row.ratio("a", "b") == 2.0
    assert row.spread("a") == 6.0


def test_routing_is_the_time_at_brackets_and_new_tokens_are_told_apart():
    row = comparison(
        {"subllm decode": [3.0, 2.0, 2.2], "dense decode": [3.0, 4.0, 4.0]}, [1.0, 0.25, 1.0, 0.25, 1.0, 1.5], [3, 2, 2]
    )
    assert row.routing_share == pytest.approx(0.1)
    assert row.decode_by_blocks() == {2: (pytest.approx(0.525), pytest.approx(2 / 3)), 3: (1.0, 1.0)}


def test_the_command_measures_and_writes_a_table_and_json(tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "analysis.efficiency", "--checkpoint", str(tiny_checkpoint), "--repeats", "2",
               "--lengths", "16", "64", "--device", "cpu", "--out", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "cpu-float32.json").read_text())
    assert [row["tokens"] for row in data["rows"]] == [16, 64]
    for row in data["rows"]:
        assert all(seconds > 0 for times in row["seconds"].values() for seconds in times)
        assert row["prefill_limit"] > 1
        assert row["cache_bytes"][0] < row["cache_bytes"][1]
        assert len(row["step_seconds"]) == len(row["structure"]) + 1
        assert set(row["decode_blocks"]) <= {3, 5, 6}, "blocks outside, in the first and in the second level"
    assert "| 64 |" in (tmp_path / "cpu-float32.md").read_text()
    refused = subprocess.run([*command, "--lengths", "100000"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "allowed are 1 to 512" in refused.stderr


def test_a_run_goes_on_with_what_was_measured_on_the_same_machine(tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "analysis.efficiency", "--checkpoint", str(tiny_checkpoint), "--repeats", "1",
               "--device", "cpu", "--out", str(tmp_path), "--resume"]  # fmt: skip
    file = tmp_path / "cpu-float32.json"
    written = []
    for lengths in (["16"], ["16", "24"]):
        done = subprocess.run([*command, "--lengths", *lengths], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        written.append(json.loads(file.read_text()))
    before, data = written
    assert [row["tokens"] for row in data["rows"]] == [16, 24]
    assert data["rows"][0] == before["rows"][0]
    assert "16 tokens" not in done.stderr
    file.write_text(json.dumps(data | {"facts": data["facts"] | {"processor": "another"}}))
    refused = subprocess.run([*command, "--lengths", "16"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "measured with another processor" in refused.stderr
    file.write_text("{")
    refused = subprocess.run([*command, "--lengths", "16"], capture_output=True, text=True, check=False)
    assert "cannot be gone on with" in refused.stderr


def test_the_text_is_long_enough_for_the_longest_prompt():
    assert len(benchmark_text()) > 300_000
