"""Several texts in one row, told apart by positions that restart, are what they are in rows of their own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM

from subllm import SubllmCache
from tests.conftest import DEVICE, tiny_model

from .test_modeling import TOLERANCE, cases, pad


def packed(texts):
    """The texts in one row: ids and positions, (1, T) each."""
    positions = [torch.arange(len(text), device=text.device) for text in texts]
    return torch.cat(texts)[None], torch.cat(positions)[None]


def apart(tensor, texts):
    return tensor.split([len(text) for text in texts])


@settings(max_examples=40)
@given(cases(), st.sampled_from(["sdpa", "eager"]))
@torch.no_grad()
def test_texts_in_one_row_equal_the_texts_alone(case, attention):
    model, texts = case
    model.set_attn_implementation(attention)
    ids, positions = packed(texts)
    row = model(ids, position_ids=positions, output_routing=True)
    for index, text in enumerate(texts):
        alone = model(text[None], output_routing=True)
        torch.testing.assert_close(apart(row.logits[0], texts)[index], alone.logits[0], **TOLERANCE)
        for ours, expected in zip(row.routing, alone.routing, strict=True):
            assert torch.equal(apart(ours.kept[0], texts)[index], expected.kept[0])
            torch.testing.assert_close(apart(ours.weights[0], texts)[index], expected.weights[0], **TOLERANCE)


@settings(max_examples=30)
@given(cases(), st.sampled_from(["left", "right"]), st.sampled_from(["sdpa", "eager"]))
@torch.no_grad()
def test_padded_rows_may_hold_several_texts_each(case, side, attention):
    model, texts = case
    model.set_attn_implementation(attention)
    groups = [texts, texts[:1], texts[::-1]]
    rows = [packed(group) for group in groups]
    ids, mask = pad([row[0][0] for row in rows], side)
    positions, _ = pad([row[1][0] for row in rows], side)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for index, (row, at) in enumerate(rows):
        expected = model(row, position_ids=at).logits[0]
        torch.testing.assert_close(logits[index][mask[index].bool()], expected, **TOLERANCE)


def decided_by_rounding(routing):
    """Whether a kept and a dropped token have the same score, such as one token twice before the first attention."""
    for record in routing:
        kept, dropped = record.kept[0], record.reached[0] & ~record.kept[0]
        if record.scores is not None and kept.any() and dropped.any():
            scores = record.scores[0]
            if (scores[kept][:, None] - scores[dropped]).abs().min() < 1e-5:
                return True
    return False


@settings(max_examples=40)
@given(cases(), st.integers(0, 20))
@torch.no_grad()
def test_training_keeps_in_each_text_what_it_keeps_in_the_text_alone(case, seed):
    model, texts = case
    model.train()

    def run(ids, **options):
        torch.manual_seed(seed)
        return model(ids, output_routing=True, use_cache=False, **options)

    ids, positions = packed(texts)
    row = run(ids, position_ids=positions)
    parents = {site.level: site.parent for site in model.config.parsed_structure.sites}
    for index, text in enumerate(texts):
        kept = {0: len(text)}
        for level, record in enumerate(row.routing, start=1):
            router, share = (
                model.config.routers[level - 1],
                model.config.retention_ratios[level - 1] * kept[parents[level]],
            )
            kept[level] = int(apart(record.kept[0], texts)[index].sum())
            first = int(
                model.config.parsed_structure.sites[level - 1].kind == "key_value"
            )  # is a key beside the others
            if router != "even" and (kept[parents[level]] or router != "colt5"):
                count = max(int(share + 1e-6), 1) if router in ("mod", "colt5") else math.ceil(share - 1e-6)
                assert count <= kept[level] <= count + first
        if "random" in model.config.routers:
            continue  # draws anew for every text
        alone = run(text[None])
        if decided_by_rounding(alone.routing):
            continue
        torch.testing.assert_close(apart(row.logits[0], texts)[index], alone.logits[0], **TOLERANCE)
        for ours, expected in zip(row.routing, alone.routing, strict=True):
            assert torch.equal(apart(ours.kept[0], texts)[index], expected.kept[0])
            torch.testing.assert_close(apart(ours.weights[0], texts)[index], expected.weights[0], **TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("positions", ["original", "parent", "packed"])
def test_a_collator_without_padding_gives_the_loss_and_the_gradients_of_a_padded_batch(positions, checkpointing):
    texts = [torch.randint(1, 97, (n,), generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (9, 1, 14, 6)]
    ids, mask = pad(texts, "right")
    padded = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    flat = DataCollatorWithFlattening()([{"input_ids": text.tolist()} for text in texts])
    assert "attention_mask" not in flat
    found = []
    for batch in (padded, flat):
        model = tiny_model("T(T(T)T)T", positions=positions).to(DEVICE).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        loss = model(**{name: value.to(DEVICE) for name, value in batch.items()}).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "positions", [[0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 0, 0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 7, 8, 9, 5, 6, 7], list(range(9))]
)
def test_without_brackets_it_tells_texts_apart_as_a_llama(positions, attention):
    model = tiny_model("TTT", attn_implementation=attention)
    fields = {k: v for k, v in model.config.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation=attention)).eval()
    llama.load_state_dict(model.state_dict())
    ids, positions = torch.randint(1, 97, (2, 9)), torch.tensor([positions])
    ours, theirs = (each(ids, position_ids=positions, use_cache=False).logits for each in (model, llama))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.no_grad()
def test_positions_that_jump_ahead_under_a_mask_are_one_text():
    model = tiny_model("T(T)T")
    ids, mask = torch.randint(1, 97, (1, 6)), torch.ones(1, 6)
    positions = torch.tensor([[0, 1, 2, 10, 11, 12]])
    before = model(ids, attention_mask=mask, position_ids=positions).logits
    ids[0, 0] = ids[0, 0] % 96 + 1
    assert not torch.equal(model(ids, attention_mask=mask, position_ids=positions).logits[:, 3:], before[:, 3:])


@torch.no_grad()
def test_a_cache_holds_one_text_per_row():
    model = tiny_model("T(T)T")
    ids, positions = packed([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])
    assert model(ids, position_ids=positions).past_key_values is None
    assert model(ids, position_ids=torch.arange(5)[None]).past_key_values is not None
    with pytest.raises(ValueError, match="several texts, which a cache cannot continue"):
        model(ids, position_ids=positions, past_key_values=SubllmCache(model.config))


def test_flash_attention_refuses_several_texts_in_a_row():
    from subllm.model.attention_mask import attention_mask
    from subllm.routing import Lengths

    texts = torch.tensor([[0, 0, 1]])
    with pytest.raises(ValueError, match="use attn_implementation='sdpa' or 'eager'"):
        attention_mask("flash_attention_2", torch.zeros(1, 3, 4), Lengths.even(0, 1), Lengths.even(3, 1), texts)


def test_positions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 4\), but the input has 2 rows of 6 columns"):
        tiny_model("T(T)T")(torch.ones(2, 6, dtype=torch.long), position_ids=torch.arange(4)[None])
