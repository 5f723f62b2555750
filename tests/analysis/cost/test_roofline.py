"""Predictions: operations and bytes are those of real forwards and tensors."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from analysis import AnalysisError
from analysis.cost.hardware import Hardware, load_hardware
from analysis.cost.measure import peak_bytes
from analysis.cost.operations import prefill_operations
from analysis.cost.roofline import decode_work, prefill_work, training_work
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
from subllm import SubllmCache
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
structures = st.sampled_from(["TT", "T(T)T", "TT(T(T)T)T", "T(T)T(TT)T", "(T)"])


@settings(max_examples=20, deadline=None)
@given(structures, st.integers(1, 40), st.booleans(), st.booleans(), st.sampled_from(sorted(ROUTERS)))
def test_parameters_cache_and_operations_are_those_of_the_model(structure, length, tied, biased, router):
    model = tiny_model(structure, tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased, router=router)
    config = model.config
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    cache = SubllmCache(config)
    ids = torch.randint(1, config.vocab_size, (1, length))
    with torch.inference_mode():
        records = model(ids, past_key_values=cache, output_routing=True).routing
    levels = [length, *(int(record.kept.sum()) for record in records)]
    assert cache_bytes(config, levels, dtype="float32") == cache.used_bytes
    tokens = block_tokens(config, levels)
    products = [w for w in prefill_work(config, levels, dtype="float32") if w.module != "routing"]
    assert sum(w.operations for w in products) == prefill_operations(config, tokens)
    trained = [w for w in training_work(config, levels) if w.module != "routing"]
    head = 2 * config.hidden_size * config.vocab_size
    assert sum(w.operations for w in trained) == 3 * (prefill_operations(config, tokens) + (length - 1) * head)


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
    assert all(row.source for row in rows)
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_hardware(tmp_path / "missing.json")


STRUCTURES = ["TTTT", "T(T)T", "TT(TTT(TT)T)T", "TTT(TT(TTT)T(T)T)TT"]


@pytest.mark.parametrize("structure", STRUCTURES)
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
    assert prefill_bytes(model.config, levels, 1, "float32", pieces=True) == pytest.approx(ours, rel=0.02)
    assert prefill_bytes(without_levels(model.config), [2048], 1, "float32") == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_activations_are_what_autograd_keeps(structure, dtype, router):
    model = tiny_model(structure, hidden_size=96, intermediate_size=256, router=router).to(getattr(torch, dtype))
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
    assert activation_bytes(model.config, levels, 1, dtype) == pytest.approx(found, rel=0.01)
