"""Blocks that are launched as one graph give the numbers of blocks that are launched kernel by kernel."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from subllm import Probe, SubllmCache
from tests.conftest import tiny_model

from . import CLOSE, GRAPHS, NAME, NEAR, counting
from .pretend import books

EAGER = 2  # passes of one token before anything is captured


@torch.no_grad()
def fed(model, ids, pieces, cache=None, **options):
    """Logits after every piece of a text, (B, T, V), and the cache."""
    cache = SubllmCache(model.config) if cache is None else cache
    split = ids[:, : sum(pieces)].split(pieces, 1)
    parts = [model(part.to(model.device), past_key_values=cache, **options).logits for part in split]
    return torch.cat(parts, 1).cpu(), cache


@pytest.fixture
def long_ids():
    """(4, 60) tokens."""
    return torch.randint(1, 97, (4, 60), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1, 4])
def test_decoding_gives_the_numbers_of_a_whole_pass(models, long_ids, rows):
    model, there = models
    ids = long_ids[:rows]
    found, cache = fed(there, ids, [7, *[1] * 53])  # long enough for buffers to grow
    torch.testing.assert_close(found, model(ids).logits, **NEAR)
    assert bool(cache.graphs.replays) is GRAPHS and not cache.graphs.refusal


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("router", [["stride", "subllm"], ["subllm", "stride"]], ids=str)
@torch.no_grad()
def test_decoding_through_merged_groups_gives_the_numbers_of_a_whole_pass(long_ids, rows, router):
    model, ids = tiny_model("TT(TT(T)T)TT", router=router), long_ids[:rows]
    found, cache = fed(copy.deepcopy(model).to(NAME), ids, [7, *[1] * 53])
    torch.testing.assert_close(found, model(ids).logits, **NEAR)
    assert bool(cache.graphs.replays) is GRAPHS and not cache.graphs.refusal


@torch.no_grad()
def test_padding_tokens_taken_back_and_rows_that_move(models, long_ids):
    model, there = models
    mask = torch.ones_like(long_ids)
    mask[0, :5], mask[2, :3] = 0, 0
    whole = model(long_ids, attention_mask=mask).logits
    cache = SubllmCache(there.config)

    def feed(ids, mask, columns):
        parts = [
            there(
                ids[:, at, None].to(NAME), attention_mask=mask[:, : at + 1].to(NAME), past_key_values=cache
            ).logits.cpu()
            for at in columns
        ]
        return torch.cat(parts, 1)

    there(long_ids[:, :20].to(NAME), attention_mask=mask[:, :20].to(NAME), past_key_values=cache)
    feed(long_ids, mask, range(20, 30))
    cache.crop(-4)
    torch.testing.assert_close(feed(long_ids, mask, range(26, 40)), whole[:, 26:40], **NEAR)
    order = torch.tensor([2, 0, 0, 3])
    cache.batch_select_indices(order)
    replays = cache.graphs.replays
    torch.testing.assert_close(feed(long_ids[order], mask[order], range(40, 50)), whole[order, 40:50], **NEAR)
    assert (cache.graphs.replays > replays) is GRAPHS


def test_the_record_is_the_same(models, long_ids):
    _, there = models
    probe = Probe(record=True)
    records = []
    for allowed in (True, False):
        cache = SubllmCache(there.config)
        cache.graphs.allowed = allowed
        fed(there, long_ids[:1], [30, *[1] * 10], cache)
        records.append(there.model(long_ids[:1, 40:41].to(NAME), past_key_values=cache, probe=probe).routing)
    for captured, plain in zip(*records, strict=True):
        for name, value in vars(plain).items():
            if value is not None:
                torch.testing.assert_close(getattr(captured, name).cpu(), value.cpu(), equal_nan=True, **CLOSE)


@counting
@pytest.mark.parametrize("structure", ["TTTTTTTTTT", "TT(TT(TT)TT)TT"])
def test_a_token_takes_one_launch_per_run_of_blocks_beside_what_the_brackets_do(structure, long_ids):
    there = tiny_model(structure).to(NAME)
    _, cache = fed(there, long_ids[:1], [30, *[1] * 8])
    with books() as token:
        fed(there, long_ids[:1, 40:41], [1], cache)
    runs = len(there.config.parsed_structure.runs)
    assert 0 < token.operations["graph"] <= runs
    brackets = 2 * there.config.parsed_structure.num_levels
    assert sum(token.operations.values()) <= 30 + 20 * brackets + 5 * runs, token.operations
    assert sum(token.waits.values()) <= there.config.parsed_structure.num_levels + 1  # the test reads the logits


def test_where_graphs_cannot_be_used_nothing_changes(long_ids):
    model = tiny_model("TT(TT)T")
    there = copy.deepcopy(model).to(NAME)
    pieces = [20, *[1] * 10]
    whole = fed(model, long_ids[:, :30], pieces)[0]
    observed = fed(there, long_ids[:, :30], pieces, probe=Probe(observe=lambda event: None))
    with torch.enable_grad():
        cache = SubllmCache(there.config)
        for part in long_ids[:, :30].split(pieces, 1):
            there(part.to(NAME), past_key_values=cache)
    handle = there.model.layers[0].register_forward_hook(lambda *_: None)
    hooked = fed(there, long_ids[:, :30], pieces)
    handle.remove()
    for logits, cache in (observed, hooked):
        torch.testing.assert_close(logits, whole, **NEAR)
        assert not cache.graphs.replays
    assert not fed(model, long_ids[:, :30], pieces)[1].graphs.replays  # the CPU has none


@pytest.mark.skipif(not GRAPHS, reason="this version of torch captures no graphs")
def test_a_device_that_cannot_capture_runs_kernel_by_kernel(long_ids, monkeypatch):
    there = tiny_model("TT(TT)T").to(NAME)
    expected, _ = fed(there, long_ids, [20, *[1] * 40])
    mlp = there.model.layers[3].mlp  # of the level's second block
    own = mlp.forward

    def reading(hidden_states):
        assert hidden_states.sum().item() is not None
        return own(hidden_states)

    monkeypatch.setattr(mlp, "forward", reading)
    found, cache = fed(there, long_ids, [20, *[1] * 40])
    assert "not permitted when stream is capturing" in cache.graphs.refusal
    torch.testing.assert_close(found, expected, **NEAR)


def test_copies_other_weights_and_emptied_caches_are_captured_anew(long_ids):
    there = tiny_model("TT(TT)T").to(NAME)
    _, cache = fed(there, long_ids[:1], [20, *[1] * 8])
    twin, kept = copy.deepcopy(cache), copy.deepcopy(there)
    for each in (cache, twin):
        found, _ = fed(there, long_ids[:1, 28:], [1] * 8, each)
        torch.testing.assert_close(found, fed(kept, long_ids[:1], [28, *[1] * 8])[0][:, 28:], **NEAR)
    there.model.layers[4].mlp.down_proj.weight = torch.nn.Parameter(
        torch.randn_like(kept.model.layers[4].mlp.down_proj.weight)
    )
    changed, _ = fed(there, long_ids[:1, 36:], [1] * 4, cache)
    plain = copy.deepcopy(twin)
    plain.graphs.allowed = False
    torch.testing.assert_close(changed, fed(there, long_ids[:1, 36:], [1] * 4, plain)[0], **NEAR)
    cache.reset()
    again, _ = fed(there, long_ids[:1], [20, *[1] * 8], cache)
    torch.testing.assert_close(again, fed(there, long_ids[:1], [20, *[1] * 8])[0], **NEAR)


def test_a_value_that_was_not_finite_is_gone_once_it_is_taken_back(long_ids):
    there = tiny_model("TT(TT)T").to(NAME)
    expected, _ = fed(there, long_ids[:1], [20, *[1] * 8])
    cache = SubllmCache(there.config)
    fed(there, long_ids[:1], [20, *[1] * 3], cache)
    with torch.no_grad():
        wrong = torch.full((1, 2, there.config.hidden_size), torch.nan, device=NAME)
        there(inputs_embeds=wrong, past_key_values=cache)
    cache.crop(-2)
    found, _ = fed(there, long_ids[:1, 23:], [1] * 5, cache)
    torch.testing.assert_close(found, expected[:, 23:], **NEAR)


@pytest.mark.parametrize("look", ["hook", "adapter"])
def test_what_looks_into_blocks_or_changes_them_turns_graphs_off(long_ids, look):
    there = tiny_model("TT(TT)T").to(NAME)
    calls = []
    if look == "hook":
        there.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    if look == "adapter":
        there = get_peft_model(
            there, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        ).get_base_model()
    _, cache = fed(there, long_ids[:1], [20, *[1] * 8])
    assert not cache.graphs.replays
    assert look != "hook" or len(calls) == 9


def test_beams_do_not_capture_at_every_token(long_ids):
    model = tiny_model("TT(TT)T")
    there = copy.deepcopy(model).to(NAME)
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(long_ids, **options)
    assert torch.equal(there.generate(long_ids.to(NAME), **options).cpu(), expected)
