"""The benchmark: operations are counted as torch counts them, and the command reports what it measured."""

from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from analysis.commands.efficiency import main
from analysis.cost.benchmark_text import NEW_TOKENS, benchmark_text, prompt_of
from analysis.cost.comparison import Baseline, Comparison, Setting, baseline, compare
from analysis.cost.operations import (
    attention_operations,
    decode_operations,
    linear_operations,
    prefill_operations,
    window_pairs,
)
from analysis.cost.sweep import facts_of, from_parquet, settings_of, to_parquet
from analysis.errors import AnalysisError
from analysis.figures.cost import measured_break_even, measured_modules, measured_speedup, measured_steps
from analysis.trace.prefill import prefill
from subllm.checkpoints.dense import routing_off
from subllm.routing import ROUTERS, Selection
from tests.conftest import run_command, tiny_config, tiny_model


def trace(model, ids, cache, probe):
    return prefill(model, ids, cache=cache, probe=probe)


ROUTED = [
    *(({"router": name}, structure) for name in sorted(ROUTERS) for structure in ("T(T)T", "T(T(TT)T)(T)")),
    ({"router": "mod", "predictor": True}, "T(T)T(T)"),
    ({"router": ["stride", "mod"], "retention_ratio": [0.5, 0.3]}, "T(TT(T)T)T"),
    ({}, "TTT"),
    ({"window": 7}, "CTC"),
    ({"window": 64, "light_heads": 2, "light_intermediate_size": 5}, "C(CT)C"),
    ({"router": "stride", "retention_ratio": 0.5}, "C(TC)"),
]


@pytest.mark.parametrize(("fields", "structure"), ROUTED, ids=str)
def test_operations_equal_what_torch_counts(fields, structure):
    fields = {"retention_ratio": 0.5} | fields if "(" in structure else fields
    model = tiny_model(structure, attn_implementation="eager", **fields)
    config = model.config
    ids = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            output = model(ids, output_routing=True, logits_to_keep=1)
        levels = [40, *(int(record.kept.sum()) for record in output.routing)]
    # these kernels compute all pairs of queries and keys, and not only those that a query sees
    extra = 0
    for block, level in enumerate(config.parsed_structure.block_levels):
        n = levels[level]
        if block in config.parsed_structure.light_heavy:
            query, keys, _ = (levels[site.level] for site in config.parsed_structure.light_heavy[block])
            heavy = config.num_attention_heads - config.light_heads
            extra += 4 * 8 * config.light_heads * (n * n - window_pairs(n, config.window))
            extra += 4 * 8 * heavy * (query * keys - query * (keys + 1) / 2)
        else:
            extra += attention_operations(config, n * n - n * (n + 1) // 2)
    predictors = sum(
        2 * levels[site.parent] * (32 * 16 + 16) * config.predictor for site in config.parsed_structure.sites
    )
    assert counter.get_total_flops() == prefill_operations(config, levels) + extra + predictors


@pytest.mark.parametrize("structure", ["TTT", "TCT", "CC"])
def test_one_token_decoded_is_the_difference_of_two_prompts(structure):
    config = tiny_config(structure, **({"window": 5} if "C" in structure else {}))
    levels = 1 + config.parsed_structure.num_levels
    head = prefill_operations(config, [0] * levels)
    more = prefill_operations(config, [11] * levels) - prefill_operations(config, [10] * levels)
    assert decode_operations(config, [11] * levels, [True] * levels) == more + head
    assert decode_operations(config, [0] * levels, [False] * levels) == head
    assert linear_operations(config) == 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)


def comparison(seconds, steps=(), decode_blocks=(), tokens=10):
    return Comparison("T(T)T", tokens, 1, 0.0, [0.5], seconds, seconds, {}, 1.0, 1.0, [1, 2], [1, 0], [1, 2], [3, 4],
                      list(steps), {}, list(decode_blocks), [])  # fmt: skip


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


def test_new_tokens_take_what_all_of_them_take_however_many_blocks_each_runs():
    row = comparison({"subllm decode": [1.0, 1.0, 4.0], "dense decode": [4.0, 4.0, 4.0]}, decode_blocks=[2, 2, 3])
    assert row.ratio("dense decode", "subllm decode") == 2.0, "the median of the ratios would be 4"
    assert row.throughput("subllm decode") == 0.5


def test_new_tokens_are_written_by_the_same_code_with_a_cache_that_grows_in_place(checkpoint, monkeypatch):
    """A DynamicCache copies all keys and values for every token, which would make the dense model look slow."""
    written = []
    usual = LlamaForCausalLM.forward

    def counted(self, input_ids=None, *args, **kwargs):
        written.append(input_ids.shape[1])
        return usual(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    row = compare(checkpoint.model, baseline(checkpoint, "llama"), prompt_of(checkpoint, 40), 1)
    assert set(written) == {40}, "LlamaForCausalLM reads; it writes no token"
    assert all(ours <= dense for ours, dense in row.growth)
    assert row.growth[0][1] == row.cache_bytes[1] + row.cache_bytes[1] // 40


@pytest.mark.parametrize("batch", [1, 2])
def test_the_limit_of_decoding_is_of_the_tokens_that_are_timed(checkpoint, batch):
    """The tokens that only let the caches grow may be kept or dropped."""
    ids = prompt_of(checkpoint, 40, batch)

    def dropping(first):
        def decide(level, router, tokens):
            kept = tokens.positions < first
            return Selection.of(tokens, kept, kept.float())

        return decide

    rows = [
        compare(checkpoint.model, baseline(checkpoint, "llama"), ids, 1, override=dropping(first))
        for first in (40, 40 + NEW_TOKENS // 4)
    ]
    assert rows[0].decode_blocks == rows[1].decode_blocks, "the blocks outside of the levels"
    assert rows[0].decode_limit == rows[1].decode_limit > 1


def test_light_heavy_blocks_are_drawn_as_blocks():
    row = comparison({}, [1.0, 0.25, 2.0, 0.25, 3.0, 0.5])
    figure = measured_steps(replace(row, structure="C(T)C"))
    blocks, routing = figure.data
    assert (list(blocks.x), list(blocks.y)) == ([0, 1, 2], [1000, 2000, 3000])
    assert (list(routing.x), list(routing.y)) == ([0.5, 1.5], [250, 250])


def test_no_legend_stands_on_the_data_and_no_number_on_a_pattern():
    rows = [comparison({name: [1.0] for name in ("dense", "subllm", "dense decode", "subllm decode")})]
    for figure in (measured_speedup(rows), measured_steps(rows[0]), measured_modules(rows[0])):
        legend = figure.layout.legend
        assert legend.y >= 1 and legend.yanchor == "bottom", "it grows away from the plot"
    for bars in measured_speedup(rows).data[:2]:
        assert bars.textposition == ("outside" if bars.marker.pattern.shape else "inside")


def test_break_even_lies_between_the_last_slower_length_and_the_next():
    rows = [
        comparison({"dense": [ratio], "subllm": [1.0]}, tokens=tokens)
        for tokens, ratio in ((16, 0.8), (64, 1.2), (256, 1.5))
    ]
    assert measured_break_even(rows) == 32
    assert measured_break_even(rows[1:]) == 0
    assert measured_break_even(rows[:1]) is None


def test_every_baseline_is_the_same_dense_model(checkpoint):
    ids = prompt_of(checkpoint, 20)
    with torch.inference_mode():
        found = [baseline(checkpoint, which)(ids).logits for which in Baseline if which != "twin"]
    torch.testing.assert_close(*found)
    with pytest.raises(AnalysisError, match="has no dense twin"):
        baseline(checkpoint, "twin")


def test_a_setting_is_measured_whole(checkpoint):
    said = []
    row = compare(
        checkpoint.model, baseline(checkpoint, "llama"), prompt_of(checkpoint, 48, 2), 2,
        lambda share, stage, **values: said.append(share), retention=0.5, overheads={"trace": trace},
    )  # fmt: skip
    assert row.setting == Setting(48, 2, 0.5)
    assert row.retention == pytest.approx([0.5, 0.5], abs=0.03)
    assert set(row.seconds) == {"subllm", "dense", "recording", "dense structure", "subllm decode", "dense decode"}
    assert all(time > 0 for times in row.seconds.values() for time in times)
    assert row.cache_bytes[0] == sum(row.level_bytes) < row.cache_bytes[1]
    assert row.growth[-1][1] - row.growth[0][1] == 47 * row.cache_bytes[1] / 48
    assert all(after[0] >= before[0] for before, after in zip(row.growth, row.growth[1:], strict=False))
    assert len(row.resident_bytes) == 2
    assert set(row.module_seconds) == {
        "attention", "mlp", "norms", "scorer", "bypass", "head", "gather and scatter", "rest"
    }  # fmt: skip
    assert sum(row.module_seconds.values()) == pytest.approx(sum(row.step_seconds), rel=0.2)
    assert said == sorted(said)


@pytest.mark.parametrize("router", ["even", "random"])
def test_a_router_without_scores_is_measured_as_it_decides(router, checkpoint):
    model = tiny_model("T(T)T(T)", router=[router, "subllm"], max_position_embeddings=512)
    ids = prompt_of(checkpoint, 40).remainder(97)
    row, half = (compare(model, routing_off(model), ids, 1, retention=share) for share in (0.0, 0.5))
    assert half.retention[0] == row.retention[0], "it has no threshold to move"
    assert half.retention[1] == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_measured_is_refused(checkpoint, monkeypatch):
    dense = baseline(checkpoint, "llama")
    with pytest.raises(AnalysisError, match="allowed are 1 to 512"):
        prompt_of(checkpoint, 0)
    with pytest.raises(AnalysisError, match="A batch of 0 cannot be measured"):
        prompt_of(checkpoint, 8, 0)
    with pytest.raises(AnalysisError, match=r"must be in \(0, 1\]"):
        settings_of([8], [1], [1.5])
    huge = prompt_of(checkpoint, 8).expand(10**9, -1)
    with pytest.raises(AnalysisError, match=r"would take about [\d,.]+ GB .* are free. Use a smaller batch"):
        compare(checkpoint.model, dense, huge, 1)
    small = tiny_model("TT", vocab_size=50)
    with pytest.raises(AnalysisError, match="vocabulary of the dense model has 50 tokens"):
        compare(checkpoint.model, small, prompt_of(checkpoint, 8), 1)


@pytest.mark.parametrize(
    ("sizes", "ratio"), [([6, 4], 1.5), ([0, 4], None), ([6, 0], None), ([6], None), ([], None)], ids=str
)
def test_the_memory_of_the_process_is_compared_where_both_sizes_are_known(sizes, ratio):
    row = replace(comparison({"subllm": [1.0], "dense": [2.0]}), resident_bytes=sizes)
    assert row.resident_ratio == ratio


def test_a_file_whose_levels_are_not_those_of_its_structure_is_refused(checkpoint):
    row = compare(checkpoint.model, baseline(checkpoint, "llama"), prompt_of(checkpoint, 16), 1)
    for wrong in (replace(row, level_bytes=row.level_bytes[1:]), replace(row, structure="T(T")):
        with pytest.raises(AnalysisError, match="not a Parquet file of measurements"):
            from_parquet(to_parquet({}, [wrong]))


def test_measurements_survive_a_parquet_file(checkpoint):
    facts = facts_of(checkpoint, "llama", 1)
    rows = [
        compare(checkpoint.model, baseline(checkpoint, "llama"), prompt_of(checkpoint, 16), 1, overheads=overheads)
        for overheads in ({"trace": trace}, None)
    ]
    assert from_parquet(to_parquet(facts, rows)) == (facts, rows)
    for data in (b"", b"PAR1", to_parquet(facts, [])):
        with pytest.raises(AnalysisError, match="not a Parquet file of measurements"):
            from_parquet(data)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"structure": ["T" * 1_000_000] * 3000}, "would take .* MiB"),
        ({"tokens": [1] * 1_000_000}, "has 1,000,000 rows"),
        ({"seconds": [[0.5] * 3_000_000] * 4}, "would take .* MiB"),
        ({"words": ["T"]}, "has a column 'words'"),
    ],
)
def test_a_small_file_that_would_take_much_memory_is_refused_before_it_is_read(columns, said, monkeypatch):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    assert len(data) < 200_000
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(AnalysisError, match=said):
        from_parquet(data)


def test_a_sweep_writes_its_results_and_goes_on_on_the_same_machine(tiny_checkpoint, tmp_path):
    command = ["--checkpoint", str(tiny_checkpoint), "--repeats", "1",
               "--device", "cpu", "--out", str(tmp_path), "--resume"]  # fmt: skip
    file = tmp_path / "cpu-float32.parquet"
    written = []
    for sweep in (["--lengths", "16"], ["--lengths", "16", "--batches", "1", "2", "--retentions", "0", "0.5"]):
        done = run_command(main, *command, *sweep)
        assert done.returncode == 0, done.stderr
        written.append(from_parquet(file.read_bytes()))
    (_, before), (facts, rows) = written
    assert facts["baseline"] == "llama"
    assert [row.setting for row in rows] == sorted(settings_of([16], [1, 2], [0, 0.5]))
    assert rows[0] == before[0]
    assert set(rows[0].decode_blocks) <= {3, 5, 6}, "blocks outside, in the first and in the second level"
    assert "\n16 tokens" not in "\n" + done.stderr
    assert "| 2 × 16 at 50% |" in (tmp_path / "cpu-float32.md").read_text()
    file.write_bytes(to_parquet(facts | {"processor": "another"}, rows))
    refused = run_command(main, *command, "--lengths", "16")
    assert refused.returncode == 1
    assert "measured with another processor" in refused.stderr
    file.write_bytes(b"{")
    refused = run_command(main, *command, "--lengths", "16")
    assert "cannot be resumed" in refused.stderr


def test_the_text_is_long_enough_for_the_longest_prompt():
    assert len(benchmark_text()) > 300_000
