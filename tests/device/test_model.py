"""The model gives the CPU's numbers on any device, and asks little of the host."""

import copy

import pytest
import torch

from subllm import Probe
from subllm.routing import ROUTERS
from tests.conftest import tiny_model

from . import CLOSE, NAME, NEAR, counting
from .pretend import books

WAYS = ["plain", "left padding", "right padding"]


def mask_of(way, ids):
    mask = torch.ones_like(ids)
    if way == "left padding":
        mask[0, :5], mask[2:, :9] = 0, 0
    if way == "right padding":
        mask[1:, -7:], mask[0, -1:] = 0, 0
    return None if way == "plain" else mask


def moved(mask):
    return None if mask is None else mask.to(NAME)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 4])
def test_forward_and_cached_decoding(models, ids, way, rows):
    model, there = models
    ids, mask = ids[:rows], mask_of(way, ids[:rows])
    whole = model(ids, attention_mask=mask).logits
    found = there(ids.to(NAME), attention_mask=moved(mask)).logits
    torch.testing.assert_close(found.cpu(), whole, **CLOSE)
    if way == "right padding":
        return
    cache, pieces = None, []
    for piece in ids.split([13, 8, 1, 1, 1], dim=1):
        seen = sum(each.shape[1] for each in pieces) + piece.shape[1]
        out = there(
            piece.to(NAME), attention_mask=None if mask is None else mask[:, :seen].to(NAME), past_key_values=cache
        )
        cache = out.past_key_values
        pieces.append(out.logits)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1).cpu()[real], whole[real], **NEAR)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}], ids=["greedy", "beams", "penalty"]
)
def test_generate(models, ids, options):
    model, there = models
    mask = mask_of("left padding", ids)
    options |= {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, attention_mask=mask, **options)
    found = there.generate(ids.to(NAME), attention_mask=mask.to(NAME), **options)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step(models, ids, checkpointing):
    losses, gradients = [], []
    for model in models:
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        rows = ids.to(model.device)
        loss = model(rows, labels=rows).loss
        loss.backward()
        losses.append(loss.detach().cpu())
        gradients.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)


@torch.no_grad()
def test_the_record_is_that_of_the_cpu(models, ids):
    records = [model.model(ids.to(model.device), probe=Probe(record=True)).routing for model in models]
    for here, there in zip(*records, strict=True):
        for name in vars(here):
            value = getattr(here, name)
            if value is not None:
                torch.testing.assert_close(getattr(there, name).cpu(), value, equal_nan=True, **CLOSE)


@counting
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("way", ["plain", "left padding"])
def test_the_host_waits_once_for_each_level_and_once_for_padding(models, ids, rows, way):
    _, there = models
    levels, mask = there.config.parsed_structure.num_levels, mask_of(way, ids[:rows])
    rows_there, mask_there = ids[:rows].to(NAME), moved(mask)
    next_there = ids[:rows, :1].to(NAME)
    for probe in (Probe(), Probe(record=True)):
        with books() as reading:
            cache = there.model(rows_there, attention_mask=mask_there, probe=probe, use_cache=True).past_key_values
        assert sum(reading.waits.values()) <= levels + (mask is not None), reading.waits
        assert not reading.copies
        with books() as token:
            there.model(next_there, past_key_values=cache, probe=probe)
        assert sum(token.waits.values()) <= levels, token.waits
        assert not token.copies


@counting
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("way", ["plain", "left padding"])
def test_where_all_rows_are_alike_merging_waits_for_nothing(ids, rows, way):
    there, mask = tiny_model("TT(T(T)T)T", router="stride").to(NAME), mask_of(way, ids[:rows])
    rows_there, mask_there, cache = ids[:rows].to(NAME), moved(mask), None
    for piece in (rows_there, *[rows_there[:, :1]] * 4):
        with books() as counted:
            output = there.model(piece, attention_mask=mask_there, past_key_values=cache, use_cache=True)
        assert sum(counted.waits.values()) <= (0 if mask is None else 3), counted.waits
        assert not counted.copies
        cache, mask_there = output.past_key_values, None if mask is None else mask_there.new_ones(rows, 1)


@counting
@torch.no_grad()
def test_a_token_takes_few_operations_more_than_the_blocks_that_it_enters(ids):
    dense, model = (tiny_model(structure).to(NAME) for structure in ("TTTTTTTTTT", "TT(TT(TT)TT)TT"))
    counts = {}
    for name, each in (("dense", dense), ("subllm", model)):
        cache = each.model(ids[:1].to(NAME), use_cache=True).past_key_values
        with books() as token:
            each.model(ids[:1, :1].to(NAME), past_key_values=cache)
        counts[name] = sum(token.operations.values())
    assert counts["subllm"] <= counts["dense"] + 2 * 30, counts


@counting
@torch.no_grad()
def test_positions_of_the_caller_make_the_host_wait_once_more(models, ids):
    model, there = models
    levels, positions = there.config.parsed_structure.num_levels, torch.arange(ids.shape[1])[None] % 11
    rows_there, positions_there = ids.to(NAME), positions.to(NAME)
    with books() as reading:
        found = there(rows_there, position_ids=positions_there, use_cache=False).logits
    assert sum(reading.waits.values()) <= levels + 1, reading.waits
    assert not reading.copies
    torch.testing.assert_close(found.cpu(), model(ids, position_ids=positions, use_cache=False).logits, **CLOSE)


@counting
def test_a_training_step_waits_once_for_each_level(models, ids):
    _, there = models
    there.train()
    rows = ids.to(NAME)
    there(rows, labels=rows).loss.backward()  # reads the counts of the schedules
    there.zero_grad()
    with books() as step:
        there(rows, labels=rows).loss.backward()
    assert sum(step.waits.values()) <= there.config.parsed_structure.num_levels, step.waits
    assert not step.copies


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("way", WAYS)
def test_every_router_decides_alike(ids, router, way, training):
    model = tiny_model("TT(T(T)T)T", router=router).train(training)
    there, mask = copy.deepcopy(model).to(NAME), mask_of(way, ids)
    found = []
    for each in (model, there):
        torch.manual_seed(0)
        found.append(
            each.model(
                ids.to(each.device),
                attention_mask=None if mask is None else mask.to(each.device),
                probe=Probe(record=True),
            )
        )
    torch.testing.assert_close(found[1].last_hidden_state.cpu(), found[0].last_hidden_state, **CLOSE)
    for here, other in zip(*(each.routing for each in found), strict=True):
        assert torch.equal(other.kept.cpu(), here.kept)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_hidden_states_and_attention_of_every_block(ids, way):
    model = tiny_model("TT(T(T)T)T")
    model.set_attn_implementation("eager")
    there, mask = copy.deepcopy(model).to(NAME), mask_of(way, ids)
    options = {"output_hidden_states": True, "output_attentions": True}
    here, found = (
        each(ids.to(each.device), attention_mask=None if mask is None else mask.to(each.device), **options)
        for each in (model, there)
    )
    for name in ("hidden_states", "attentions"):
        for one, other in zip(getattr(here, name), getattr(found, name), strict=True):
            torch.testing.assert_close(other.cpu(), one, **CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_several_texts_in_a_row(models, ids, training):
    places = torch.tensor([[*range(10), *range(8), *range(6)], [*range(4), *range(20)]]).repeat(2, 1)
    found = []
    for each in models:
        torch.manual_seed(0)
        found.append(
            each.train(training)(ids.to(each.device), position_ids=places.to(each.device), use_cache=False).logits.cpu()
        )
    torch.testing.assert_close(found[1], found[0], **CLOSE)
