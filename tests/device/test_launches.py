"""The launches that predictions count with are the operations that the models ask of a device, within 3%."""

from functools import partial

import pytest
import torch
from transformers import DynamicCache

from analysis.cost.launches import GRAPH, LEVEL, SUBLLM, level_launches
from analysis.cost.roofline import decode_work, prefill_work, training_work
from analysis.cost.sizes import without_levels
from subllm import SubllmCache, SubllmForCausalLM
from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
from subllm.checkpoints.dense import routing_off
from subllm.routing import ROUTERS
from tests.conftest import tiny_model

from . import NAME, REAL, pretend
from .pretend import PretendTensor, books

pytestmark = pytest.mark.skipif(REAL, reason="a GPU keeps no books")
DEMO = str(read_config(ASSETS / "demo").structure)
TOLERANCE = 0.03  # levels inside of others mask and look up a little more, and rows of one length less
CLOSE = {"rel": TOLERANCE}
STRUCTURES = ["T(T)T", "T(TT)T(T)T", "T(T(T)T)T"]


class _Fused(torch.autograd.Function):
    """Attention as the one kernel that it is on a GPU, forward and backward."""

    @staticmethod
    def forward(ctx, query, key, value, options):
        pretend._note("operations", "attention")
        inside = [tensor.detach().inside.clone().requires_grad_() for tensor in (query, key, value)]
        mask = options.get("attn_mask")
        with torch.enable_grad():
            result = _PLAIN(*inside, **options | {"attn_mask": None if mask is None else mask.inside})
        ctx.inside, ctx.result = inside, result
        laid_out = result.detach().transpose(1, 2).contiguous().transpose(1, 2)  # as a GPU's fused kernels do
        return PretendTensor(laid_out, query.device)

    @staticmethod
    def backward(ctx, gradient):
        pretend._note("operations", "attention")
        found = torch.autograd.grad(ctx.result, ctx.inside, gradient.inside)
        laid_out = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in found]
        return *(PretendTensor(each, gradient.device) for each in laid_out), None


_PLAIN = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **options: _Fused.apply(query, key, value, options),
    )


ROUTING = [
    *({"router": name} for name in sorted(ROUTERS)),
    {"router": "mod", "predictor": True},
    {"router": "mod", "router_weight": "unit"},
]
CASES = [(each, structure) for each in ROUTING for structure in STRUCTURES if "subllm" in each.values()]
CASES += [(each, STRUCTURES[1]) for each in ROUTING if "subllm" not in each.values()]
WRITING = [case for case in CASES if case[0] in ({"router": "subllm"}, {"router": "mod"})]


def made(structure, fields=None, dtype=torch.bfloat16):
    """A model on the device; a structure without levels gives transformers' LLaMA."""
    model = tiny_model(structure, **(fields or {}))
    return (model if "(" in structure else routing_off(model)).to(dtype).to(NAME)


def tokens_of(rows):
    return torch.randint(1, 97, (rows, 24), generator=torch.Generator().manual_seed(0)).to(NAME)


def count(run):
    with books() as counted:
        result = run()
    return sum(n for name, n in counted.operations.items() if name != "aten::lift_fresh"), result  # no kernel


@torch.no_grad()
def read(model, rows):
    """Operations of reading, and what the cache holds then."""
    cache = (SubllmCache if isinstance(model, SubllmForCausalLM) else DynamicCache)(config=model.config)
    return count(partial(model, tokens_of(rows), past_key_values=cache, logits_to_keep=1))[0], cache


@torch.no_grad()
def written(model, cache, rows, tokens=8):
    """Operations of each new token, with the levels that any of the rows entered."""
    for column in range(tokens):
        before = [level.rows for level in getattr(cache, "levels", [])]
        operations, _ = count(partial(model, tokens_of(rows)[:, column, None], past_key_values=cache))
        yield operations, [level.rows != old for level, old in zip(getattr(cache, "levels", []), before, strict=True)]


def trained(model, rows):
    model.train()
    ids = tokens_of(rows)
    forward, output = count(lambda: model(input_ids=ids, labels=ids, use_cache=False))
    return forward + count(output.loss.backward)[0]


def launched(work):
    return sum(part.launches for part in work)


@pytest.mark.parametrize("structure", ["T", "TTT"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_llama_launches_what_is_counted_for_it(structure, rows):
    model = made(structure)
    config, levels = without_levels(model.config), [24.0]
    found, cache = read(model, rows)
    assert found == pytest.approx(launched(prefill_work(config, levels, rows)), **CLOSE)
    for operations, _ in written(model, cache, rows):
        assert operations == pytest.approx(launched(decode_work(config, levels, [1], rows)), **CLOSE)
    assert trained(model, rows) == pytest.approx(launched(training_work(config, levels, rows)), **CLOSE)


@pytest.mark.parametrize(("fields", "structure"), CASES, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
def test_reading_and_training_launch_what_is_counted_for_the_router(fields, structure, rows):
    model = made(structure, fields)
    config = model.config
    levels = [24.0, *[12.0] * config.parsed_structure.num_levels]
    found, cache = read(model, rows)
    empty = sum(not any(cache.levels[level].rows) for level in config.parsed_structure.block_levels)
    expected = launched(prefill_work(config, levels, rows)) - empty * SUBLLM["prefill"].block
    assert found == pytest.approx(expected, **CLOSE)
    assert trained(model, rows) == pytest.approx(launched(training_work(config, levels, rows)), **CLOSE)


@pytest.mark.parametrize(("fields", "structure"), WRITING, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_new_token_launches_what_is_counted_for_the_levels_that_it_enters(fields, structure, rows, graphs):
    model = made(structure, fields)
    _, cache = read(model, rows)
    structure, (block, once) = model.config.parsed_structure, SUBLLM["decode"]
    level, alone = (level_launches(model.config, fields["router"], "decode", n) for n in (rows, 1))
    cache.graphs.allowed = graphs
    shares = []
    for number, (operations, entered) in enumerate(written(model, cache, rows, 12)):
        runs = [run for first, run in structure.runs.items() if entered[structure.block_levels[first]]]
        expected = once + level * structure.num_levels + sum(GRAPH if graphs else block * len(run) for run in runs)
        if number < 3 or operations > expected + block:  # graphs are captured, and buffers grow
            continue
        assert expected - (level - alone) * structure.num_levels <= (1 + TOLERANCE) * operations
        shares.append(operations / expected)
    assert max(shares) == pytest.approx(1, **CLOSE)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_demos_structure_launches_what_is_counted(rows):
    for model in (made(DEMO), made("T" * DEMO.count("T"))):
        config = model.config if isinstance(model, SubllmForCausalLM) else without_levels(model.config)
        levels = [24.0, *[12.0] * config.parsed_structure.num_levels]
        assert read(model, rows)[0] == pytest.approx(launched(prefill_work(config, levels, rows)), rel=0.01)


@pytest.mark.parametrize("structure", ["TTT", "TTTTT"])
def test_float32_launches_no_casts(structure):
    model = made(structure, dtype=torch.float32)
    config = without_levels(model.config)
    found, cache = read(model, 1)
    assert found == pytest.approx(launched(prefill_work(config, [24.0], dtype="float32")), **CLOSE)
    expected = launched(decode_work(config, [24.0], [1], dtype="float32"))
    for operations, _ in written(model, cache, 1):
        assert operations == pytest.approx(expected, **CLOSE)


def test_every_router_was_counted():
    assert set(LEVEL) == set(ROUTERS)
