"""Predictions: operations and bytes are those of real forwards and tensors."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from analysis import AnalysisError
from analysis.cost import roofline
from analysis.cost.hardware import Hardware, Work, load_hardware
from analysis.cost.measure import peak_bytes
from analysis.cost.operations import prefill_operations
from analysis.cost.roofline import PHASES, decode_work, phase_work, prefill_work, training_work
from analysis.cost.sizes import (
    activation_bytes,
    block_tokens,
    cache_bytes,
    level_tokens,
    parameters,
    prefill_bytes,
    training_bytes,
    without_levels,
)
from subllm import SubllmCache, SubllmConfig
from subllm.checkpoints.dense import routing_off
from subllm.routing import ROUTERS
from tests.conftest import tiny_config, tiny_model

ROW = {
    "name": "x",
    "teraflops": {"bfloat16": 2, "float32": 1},
    "gigabytes_per_second": 10,
    "gigabytes": 1,
    "source": "a test",
}
CPU = torch.device("cpu")
PREDICTED = {"router": "mod", "predictor": True}
ROUTING = [*({"router": name} for name in sorted(ROUTERS)), PREDICTED]
structures = st.sampled_from(["TT", "T(T)T", "TT(T(T)T)T", "T(T)T(TT)T", "(T)", "C", "CTC", "T(C)C(TC)"])


@settings(max_examples=20)
@example("T(T(T)T)T", 9, False, False, {"router": "stride", "retention_ratio": [0.5, 0.25]})
@given(structures, st.integers(1, 40), st.booleans(), st.booleans(), st.sampled_from(ROUTING))
def test_parameters_cache_and_operations_are_those_of_the_model(structure, length, tied, biased, fields):
    fields = fields if "(" in structure else {}
    model = tiny_model(structure, tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased, **fields)
    config = model.config
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    cache = SubllmCache(config)
    ids = torch.randint(1, config.vocab_size, (1, length))
    with torch.inference_mode():
        records = model(ids, past_key_values=cache, output_routing=True).routing
    levels = [length, *(int(record.kept.sum()) for record in records)]
    assert cache_bytes(config, levels, dtype="float32") == cache.used_bytes
    products = [w for w in prefill_work(config, levels, dtype="float32") if w.module != "routing"]
    assert sum(w.operations for w in products) == prefill_operations(config, levels)
    trained = [w for w in training_work(config, levels) if w.module != "routing"]
    head = 2 * config.hidden_size * config.vocab_size
    assert sum(w.operations for w in trained) == 3 * (prefill_operations(config, levels) + (length - 1) * head)


def test_levels_hold_the_nominal_share_unless_told_otherwise():
    config = tiny_config("T(T(T)T)T(T)", retention_ratio=[0.5, 0.5, 0.25])
    assert level_tokens(config, 100) == [100, 50, 25, 25]
    assert level_tokens(config, 100, [1, 0.1, 0]) == [100, 100, 10, 0]
    assert block_tokens(config, [100, 50, 25, 24]) == [100, 50, 25, 50, 100, 24]
    assert block_tokens(without_levels(config), [100]) == [100] * 6


def test_the_slower_of_arithmetic_and_memory_counts():
    hardware = Hardware.parse(ROW)
    config = tiny_config("T(T)T", retention_ratio=0.5)
    (one, *_) = prefill_work(config, level_tokens(config, 8), dtype="float32")
    assert hardware.seconds([one], "float32") == max(one.operations / 1e12, one.bytes / 1e10)
    assert hardware.seconds([one], "float16") == max(one.operations / 2e12, one.bytes / 1e10)


def test_of_a_run_the_longer_of_launching_and_working_counts():
    hardware = Hardware.parse(ROW | {"launch_microseconds": 2})
    assert hardware.launch_seconds == 2e-6
    assert Hardware.parse(ROW).launch_seconds == 0
    short, long = Work("mlp", 0, 1e3, 0, launches=10), Work("mlp", 0, 1e9, 0, launches=10)  # 1 ns and 1 ms of work
    assert hardware.seconds([short], "float32") == pytest.approx(20e-6)
    assert hardware.seconds([short, long], "float32") == pytest.approx(1e-3 + 1e-9), "the host launches ahead"
    after = replace(long, run=1)
    assert hardware.seconds([short, after], "float32") == pytest.approx(1e-3 + 20e-6), "not across a wait"


def test_the_work_of_equal_levels_is_worked_out_once(monkeypatch):
    asked = Counter()

    def counted(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: asked.update([name]) or real(*given))

    counted(SubllmConfig, "_by_level")
    counted(roofline, "_block")
    for phase in PHASES:
        found = []
        for structure in ("T(T)C", "T(T)C" * 20):
            config = tiny_config(structure)
            asked.clear()
            phase_work(config, phase, 100)
            found.append(dict(asked))
        assert found[0] == found[1], phase


def test_the_host_waits_at_every_level():
    config = tiny_config("T(T(T)T)T(T)")
    for phase in PHASES:
        work = phase_work(config, phase, 10)
        assert [part.run for part in work if part.module == "mlp"] == [0, 1, 2, 2, 2, 3]
        assert [part.run for part in work if part.module in ("routing", "head")] == [0, 1, 2, 3]
        assert [part.run for part in phase_work(without_levels(config), phase, 10)] == [0] * (6 * 4 + 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_traffic_between_matrix_products_is_what_the_operations_read_and_write(dtype):
    """Operations are counted on the difference of two lengths and two depths: what one block does to one token."""
    width, inner, heads, groups, size = 64, 96, 4, 2, 16
    sizes = {"hidden_size": width, "intermediate_size": inner}
    found: Counter[str] = Counter()
    for sign, structure, length in ((1, "TT", 200), (-1, "T", 200), (-1, "TT", 100), (1, "T", 100)):
        model = tiny_model(structure, **sizes, max_position_embeddings=4096).to(getattr(torch, dtype))
        with torch.no_grad(), _Traffic() as traffic:
            model.model(torch.ones(1, length, dtype=torch.long), use_cache=False)
        for name, moved in traffic.moved.items():
            found[name] += sign * moved / 100
    attention = sum(moved for name, moved in found.items() if "attention" in name)
    config = tiny_config("T", **sizes)
    first, second, third, fourth = prefill_work(config, [1], dtype=dtype)[:4]
    each = 4 if dtype == "float32" else 2
    weights = each * (width * size * 2 * (heads + groups) + 3 * width * inner)
    expected = first.bytes + third.bytes + fourth.bytes - weights
    assert sum(found.values()) - attention == pytest.approx(expected, rel=0.03)  # without cos, sin and scales
    assert attention == pytest.approx(second.bytes, rel=0.05)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; those that only look at memory move none."""

    _LOOKING = ("view", "slice", "transpose", "t", "expand", "unsqueeze", "_unsafe_view", "permute", "select", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name.removeprefix("aten::")
        if name not in self._LOOKING:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
            self.moved[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return result


def test_a_token_that_is_sure_to_be_dropped_costs_a_level_nothing_when_decoding():
    config = tiny_config("T(T)T", retention_ratio=0.5)
    kept = decode_work(config, [10, 5], [1, 1])
    dropped = decode_work(config, [10, 5], [1, 0])
    inside = [w for w in dropped if w.block == 1]
    assert sum(w.operations + w.bytes for w in inside) == 0
    assert sum(w.bytes for w in kept if w.block == 1) > 0
    half, batched = (decode_work(config, [10, 5], [1, 0.5], batch) for batch in (1, 16))
    weights = [next(w.bytes for w in work if (w.module, w.block) == ("mlp", 1)) for work in (half, batched)]
    assert weights[1] < 16 * weights[0], "a batch reads the weights once"


def test_training_memory_grows_with_the_tokens_in_the_blocks():
    config = tiny_config("T(T)T", retention_ratio=0.5)
    ours, theirs = (training_bytes(c, level_tokens(c, 64)) for c in (config, without_levels(config)))
    assert ours["activations"] < theirs["activations"]
    assert ours["logits"] == theirs["logits"]
    assert ours["weights"] == 2 * parameters(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "a row needs exactly"),
        ({"more": 1}, "a row needs exactly"),
        ({"teraflops": {"int4": 3}}, "allowed are rates for"),
        ({"teraflops": {"bfloat16": -1}}, "bfloat16 -1; it must be a positive number"),
        ({"launch_microseconds": -1}, "launch_microseconds -1; it must be a positive number, or 0"),
        ({"gigabytes": "many"}, "gigabytes 'many'; it must be a positive number"),
    ],
)
def test_bad_rows_are_refused(change, message, tmp_path):
    row = {key: value for key, value in (ROW | change).items() if value is not None}
    (tmp_path / "table.json").write_text(json.dumps([row]))
    with pytest.raises(AnalysisError, match=message):
        load_hardware(tmp_path / "table.json")


def test_the_table_has_a_source_for_every_row(tmp_path):
    rows = load_hardware()
    assert len({row.name for row in rows}) == len(rows) > 10
    assert all(row.source and row.launch_seconds > 0 for row in rows)
    assert all("launch time" in row.source for row in rows), "an estimate is said to be one"
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_hardware(tmp_path / "missing.json")


STRUCTURES = ["TTTT", "T(T)T", "TT(TTT(TT)T)T", "TTT(TT(TTT)T(T)T)TT"]
DIVIDED = ["CC", "TCTC", "T(CC)T"]


@pytest.mark.parametrize("structure", STRUCTURES + DIVIDED)
def test_memory_of_reading_is_what_tensors_take(structure):
    model = tiny_model(structure, hidden_size=96, intermediate_size=256, max_position_embeddings=4096)
    ids = torch.randint(1, 97, (1, 2048), generator=torch.Generator().manual_seed(0))
    llama = routing_off(model)
    with torch.inference_mode():
        records = model(ids, output_routing=True, logits_to_keep=1).routing
        levels = [2048, *(int(record.kept.sum()) for record in records)]
        ours = peak_bytes(lambda: model(ids, past_key_values=SubllmCache(model.config), logits_to_keep=1), CPU)
        theirs = peak_bytes(
            lambda: llama(ids, past_key_values=DynamicCache(config=llama.config), logits_to_keep=1), CPU
        )
    assert prefill_bytes(model.config, levels, 1, "float32", pieces=True) == pytest.approx(
        ours, rel=0.1 if "C" in structure else 0.02
    )
    assert prefill_bytes(without_levels(model.config), [2048], 1, "float32") == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (["stride", "stride"], [1, 0.5, 0.25, 1]),  # all rows enter at the same tokens
        (["subllm", "subllm"], [1, 1 - 0.5**4, 1 - 0.75**4, 1]),  # any of four rows
        (["subllm", "stride"], [1, 1 - 0.5**4, 1 - 0.75**4, 1]),
    ],
    ids=str,
)
def test_a_batch_needs_a_block_when_any_of_its_rows_does(router, expected):
    config = tiny_config("T(T(T))T", router=router, retention_ratio=[0.5, 0.5])
    found = decode_work(config, level_tokens(config, 64), level_tokens(config, 1), batch=4)
    own = [work.launches for work in found if work.module == "projections"]
    assert own == pytest.approx([each * own[0] for each in expected])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", ROUTING, ids=str)
def test_activations_are_what_autograd_keeps(structure, dtype, fields):
    found, expected = activations(structure, dtype, fields if "(" in structure else {})
    assert expected == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("structure", DIVIDED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_of_divided_blocks_are_nearly_what_autograd_keeps(structure, dtype):
    found, expected = activations(structure, dtype, {})
    assert expected == pytest.approx(found, rel=0.2)


def activations(structure, dtype, fields):
    """Bytes that autograd keeps of a training pass, and those that are counted for it."""
    model = tiny_model(structure, hidden_size=96, intermediate_size=256, **fields).to(getattr(torch, dtype))
    model.train()
    ids = torch.randint(1, 97, (1, 256), generator=torch.Generator().manual_seed(0))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        records = model.model(ids, use_cache=False, output_routing=True).routing
    levels = [256, *(int(record.kept.sum()) for record in records)]
    found = sum(size for size, _ in kept.values())
    return found, activation_bytes(model.config, levels, 1, dtype)


def test_a_divided_block_in_which_all_is_routed_does_what_a_llama_block_does():
    config = tiny_config("CT", window=4096, max_position_embeddings=4096)
    levels = [100.0] * 4
    for work in (
        prefill_work(config, levels),
        training_work(config, levels),
        decode_work(config, levels, [1.0] * 4, 8),
    ):
        divided, whole = ({w.module: w for w in work if w.block == block} for block in (0, 1))
        for module in ("projections", "attention", "mlp"):
            assert divided[module].operations == pytest.approx(whole[module].operations)
            assert divided[module].bytes >= whole[module].bytes
        assert sum(w.operations for w in work if w.module == "routing") > 0


def test_a_divided_block_saves_what_it_does_not_route():
    config = tiny_config("CTC", window=16)
    for phase in PHASES:
        ours, dense = (phase_work(each, phase, 200, 4) for each in (config, without_levels(config)))
        for module in ("projections", "attention", "mlp"):
            done = [sum(w.operations for w in work if w.module == module) for work in (ours, dense)]
            assert done[0] < done[1]


def test_keys_and_values_of_a_heavy_branch_add_nothing_to_the_stream():
    config = tiny_config("TCT", routed={"query": 0.25, "key_value": 0.25, "mlp": 0.25})
    levels = level_tokens(config, 4_096)
    query, keys, mlp = (w for w in prefill_work(config, levels, dtype="float32") if w.module == "routing")
    assert query == replace(mlp, run=query.run)
    assert query.operations == keys.operations == 2 * 4_096 * config.hidden_size
    assert query.bytes - keys.bytes == 4 * 5 * 1_024 * config.hidden_size
