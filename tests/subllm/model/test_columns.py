"""Hidden states and attention stand in the columns of the input, one entry per block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from subllm import Closed, Opened, Probe, Ran
from tests.conftest import tiny_model

from .test_modeling import TOLERANCE, cases, pad

BOTH = {"output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize("training", [False, True])
def test_entries_are_the_inputs_of_blocks_and_dropped_tokens_carry_their_stream(training):
    model = tiny_model("T(T(T)T)T").train(training)
    events = []
    probe = Probe(observe=events.append, record=True)
    output = model(torch.randint(1, 97, (1, 30)), probe=probe, output_hidden_states=True)
    assert len(output.hidden_states) == 6
    inside = [torch.ones(30, dtype=torch.bool), *(record.kept[0] for record in output.routing)]
    assert all(0 < kept.sum() < 30 for kept in inside[1:])
    carried = None
    for event in events:
        if isinstance(event, Ran):
            states, here = output.hidden_states[event.block][0], inside[event.level]
            assert torch.equal(states[here], event.before.hidden_states[0])
            if event.level:
                assert torch.equal(states[~here], carried[0][~here])
        if isinstance(event, (Opened, Closed)):
            after = event.after if isinstance(event, Closed) else event.before
            where = inside[0] if after.columns is None else inside[1]
            carried = torch.zeros(1, 30, 32) if carried is None else carried.clone()
            carried[0, where] = after.hidden_states[0]
    assert not output.hidden_states[2].isnan().any()


@pytest.mark.parametrize("rows", [1, 3])
def test_without_brackets_both_are_a_llamas_and_have_gradients(rows):
    model = tiny_model("TTT", attn_implementation="eager")
    fields = {k: v for k, v in model.config.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="eager")).eval()
    llama.load_state_dict(model.state_dict())
    ids = torch.randint(1, 97, (rows, 12))
    ours, theirs = (each(ids, **BOTH) for each in (model, llama))
    for name in ("hidden_states", "attentions"):
        assert len(getattr(ours, name)) == len(getattr(theirs, name))
        for mine, expected in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
    ours.hidden_states[0].retain_grad()
    ours.attentions[0].retain_grad()
    ours.logits[0, -1, 0].backward()
    assert ours.hidden_states[0].grad.abs().sum() > 0 and ours.attentions[0].grad.abs().sum() > 0


def asked_of(model):
    """Hidden states and attention, where the structure's blocks return it."""
    return {name: True for name in BOTH if "C" not in model.config.structure or name == "output_hidden_states"}


def test_attention_of_light_and_heavy_heads_is_refused():
    model = tiny_model("TC", attn_implementation="eager")
    with pytest.raises(ValueError, match="two branches attend to different tokens"):
        model(torch.ones(1, 3, dtype=torch.long), output_attentions=True)


@settings(max_examples=30)
@given(cases(), st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_a_padded_batch_has_the_rows_of_each_text_alone(case, side):
    model, rows = case
    model.set_attn_implementation("eager")
    ids, mask = pad(rows, side)
    asked = asked_of(model)
    batch = model(ids, attention_mask=mask, **asked)
    blocks = model.config.num_hidden_layers
    assert len(batch.hidden_states) == blocks + 1
    assert batch.attentions is None or len(batch.attentions) == blocks
    for index, row in enumerate(rows):
        real = mask[index].bool()
        alone = model(row[None], output_routing=True, **asked)
        for ours, expected in zip(batch.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(ours[index][real], expected[0], **TOLERANCE)
            assert not ours[index][~real].any()
        if batch.attentions is None:
            continue
        for ours, expected in zip(batch.attentions, alone.attentions, strict=True):
            torch.testing.assert_close(ours[index][:, real][:, :, real], expected[0], **TOLERANCE)
            assert not ours[index][:, ~real].any() and not ours[index][:, :, ~real].any()
        for level, record in enumerate(alone.routing, start=1):
            for block in (n for n, at in enumerate(model.config.parsed_structure.block_levels) if at == level):
                sums = alone.attentions[block][0].sum(-1)
                torch.testing.assert_close(sums, record.kept[0].to(sums).expand_as(sums), **TOLERANCE)


@settings(max_examples=30)
@given(cases(), st.data())
@torch.no_grad()
def test_pieces_behind_a_cache_have_the_rows_of_the_whole(case, data):
    model, rows = case
    model.set_attn_implementation("eager")
    ids, mask = pad(rows, "left")
    asked = asked_of(model)
    whole = model(ids, attention_mask=mask, **asked)
    cache, start = None, 0
    while start < ids.shape[1]:
        stop = data.draw(st.integers(start + 1, ids.shape[1]))
        if data.draw(st.booleans()) and cache is not None and cache.is_croppable and mask[:, start - 1].all():
            cache.crop(-1)
            start -= 1
        piece = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, **asked)
        cache = piece.past_key_values
        for name in asked:
            for ours, expected in zip(getattr(piece, name[7:]), getattr(whole, name[7:]), strict=True):
                if name == "output_attentions":
                    torch.testing.assert_close(ours, expected[:, :, start:stop, :stop], **TOLERANCE)
                else:
                    torch.testing.assert_close(ours, expected[:, start:stop], **TOLERANCE)
        start = stop


@torch.no_grad()
def test_single_hidden_states_can_be_chosen_by_number():
    model = tiny_model("T(T)T")
    ids = torch.randint(1, 97, (1, 9))
    every = model(ids, output_hidden_states=True).hidden_states
    some = model(ids, output_hidden_states=[1, -1]).hidden_states
    assert [states is None for states in some] == [True, False, True, False]
    assert torch.equal(some[1], every[1]) and torch.equal(some[3], every[3])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_gradients_return_the_same(reentrant):
    found = []
    for checkpointing in (False, True):
        model = tiny_model("T(T)T", attn_implementation="eager").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = torch.arange(1, 20)[None]
        torch.manual_seed(0)
        output = model(ids, labels=ids, use_cache=False, **BOTH)
        output.loss.backward()
        found.append([*output.hidden_states, *output.attentions, model.model.bypasses[0].scale.grad])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@torch.no_grad()
def test_attention_is_refused_where_the_kernel_or_the_mask_cannot_give_it():
    model = tiny_model("T(T)T")
    ids, mask = torch.randint(1, 97, (2, 6)), torch.ones(2, 6)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="needs the eager kernel, but attn_implementation is 'sdpa'"):
        model(ids, output_attentions=True)
    model.set_attn_implementation("eager")
    cache = model(ids, attention_mask=mask).past_key_values
    with pytest.raises(ValueError, match="give the mask of all 7"):
        model(ids[:, :1], past_key_values=cache, output_attentions=True)
