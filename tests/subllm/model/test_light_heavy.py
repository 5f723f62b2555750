"""Light/heavy blocks against golden numbers, and what they promise beside every structure (see `test_modeling`)."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from subllm import Probe, Ran, SubllmForCausalLM
from subllm.checkpoints.dense import routing_off
from subllm.model.light_heavy import linear_operations
from subllm.routing import Lengths, LevelTokens, LightHeavyRouter, Replay, Selection
from subllm.routing.soft_topk import water_level
from tests.conftest import DEVICE, GOLDEN, tiny_model

CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
SIZES = {"light_heads": 2, "light_intermediate_size": 16}
STRUCTURES = ["CC", "C(TT)C", "T(C)T"]


def divided(structure="CC", seed=0, **fields):
    return tiny_model(structure, seed, **(SIZES | {"window": 6} | fields)).to(DEVICE)


def ids_of(rows, length, seed=1):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.fixture
def block():
    return {name: tensor.to(DEVICE) for name, tensor in load_file(GOLDEN / "colt5_llama_block.safetensors").items()}


def model_of(block, **fields):
    model = divided("C", rms_norm_eps=1e-6, **fields)
    weights = {k.removeprefix("weights."): v for k, v in block.items() if k.startswith("weights.")}
    for kind in ("query", "key_value", "mlp"):
        weights |= {
            f"routers.{kind}.{ours}": block[f"{kind}.{theirs}"][0]
            for ours, theirs in (("threshold", "threshold"), ("water_level", "level"))
        }
    missing = model.model.layers[0].load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and all(name.endswith(".passes") for name in missing.missing_keys)
    return model


@torch.no_grad()
def test_every_decision_and_sum_of_a_block(block):
    events = []
    output = model_of(block)(inputs_embeds=block["x"], probe=Probe(record=True, observe=events.append))
    assert [type(event) for event in events] == [Ran]
    CLOSE(events[0].after.hidden_states, block["out"])
    assert len(output.routing) == 3
    for record, kind in zip(output.routing, ("query", "key_value", "mlp"), strict=True):
        assert torch.equal(record.kept, block[f"{kind}.kept_mask"])
        CLOSE(record.scores, block[f"{kind}.score"])
        CLOSE(record.weights, block[f"{kind}.weight"])
        CLOSE(record.threshold, block[f"{kind}.threshold"])
    queries, keys, mlp = output.routing
    changes = [branch.change for branch in events[0].branches]
    assert changes[1] is None
    for record, name, change in ((queries, "heavy_attn", changes[0]), (mlp, "heavy_mlp", changes[2])):
        CLOSE(change, block[name] * (record.kept * record.weights)[..., None])
        norms = block[name].norm(dim=-1) * record.kept
        CLOSE(record.difference_norm, norms)
        CLOSE(record.contribution_norm, norms * record.weights)
    assert keys.difference_norm.isnan().all() and keys.contribution_norm.isnan().all()
    CLOSE(queries.stream_norm, block["x"].norm(dim=-1))
    CLOSE(mlp.stream_norm, block["middle"].norm(dim=-1))


@torch.no_grad()
def test_with_everything_routed_at_weight_one_it_is_the_llama_block(block):
    events, kept = [], torch.ones(3, 40, dtype=torch.bool, device=DEVICE)
    model = model_of(block, window=40)
    model(inputs_embeds=block["x"], probe=Probe(observe=events.append, override=Replay(kept, kept.float())))
    CLOSE(events[0].after.hidden_states, block["out.dense"])


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_with_everything_kept_and_routed_at_weight_one_it_is_the_llama(structure):
    model, ids = divided(structure, window=30), ids_of(2, 30)
    for scale in model.model.bypasses.parameters():
        nn.init.ones_(scale)
    kept = torch.ones(model.model.structure.num_levels, 30, dtype=torch.bool, device=DEVICE)
    whole = model(ids, probe=Probe(override=Replay(kept, kept.float())))
    torch.testing.assert_close(whole.logits, routing_off(model)(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [30, 300])
@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_any_beginning_gives_the_same_outputs(structure, length):
    """Long texts are read in chunks of queries."""
    model, ids = divided(structure, max_position_embeddings=512), ids_of(2, length)
    whole = model(ids, output_routing=True)
    for record, kind in zip(whole.routing, [site.kind for site in model.model.structure.sites], strict=True):
        assert 0 < record.kept.sum() < record.reached.sum(), kind
    for part in (1, 2, 7, length - 1):
        torch.testing.assert_close(model(ids[:, :part]).logits, whole.logits[:, :part], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_rule_of_training_gives_beginnings_other_outputs():
    model, ids = divided().train(), ids_of(2, 30)
    whole, beginning = model(ids, use_cache=False).logits, model(ids[:, :15], use_cache=False).logits
    assert (whole[:, :15] - beginning).abs().max() > 0.01


@torch.no_grad()
def test_the_light_heads_see_their_window_only():
    """Without routed queries and MLP, a token reaches as far as the windows of all blocks together."""
    model, ids = divided("CC", window=3), ids_of(1, 20)
    changed = ids.clone()
    changed[0, 5] = changed[0, 5] % 96 + 1

    def nothing(level, router, tokens):
        return Selection.of(tokens, torch.zeros_like(tokens.positions, dtype=torch.bool), router.weigh(tokens))

    first, second = (model(each, probe=Probe(override=nothing)).logits for each in (ids, changed))
    differs = (first - second).abs().amax(-1)[0] > 0
    assert differs.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


@torch.no_grad()
def test_a_query_without_any_key_gets_nothing():
    model, ids = divided("C"), ids_of(2, 9)

    def no_keys(level, router, tokens):
        kept = torch.full_like(tokens.positions, router.kind != "key_value", dtype=torch.bool)
        return Selection.of(tokens, kept & (tokens.positions > 2), router.weigh(tokens))

    def late_keys(level, router, tokens):
        kept = tokens.positions > (4 if router.kind == "key_value" else 2)
        return Selection.of(tokens, kept, router.weigh(tokens))

    for override, silent in ((no_keys, 9), (late_keys, 5)):
        output = model(ids, probe=Probe(record=True, override=override))
        assert output.logits.isfinite().all()
        assert not output.routing[0].contribution_norm[:, :silent].any()
    assert output.routing[0].contribution_norm[:, 5:].all()


@torch.no_grad()
def test_the_first_token_is_always_a_routed_key():
    model = divided("C")
    for router in model.model.routers:
        router.threshold.fill_(1e6)
    queries, keys, mlp = model(ids_of(2, 9), output_routing=True).routing
    assert keys.kept[:, 0].all() and keys.kept.sum() == 2 and not queries.kept.any() and not mlp.kept.any()


def test_training_routes_the_nominal_share_and_its_thresholds_keep_it_at_inference():
    shares = {"query": 0.25, "key_value": 0.5, "mlp": 0.25}
    model, ids = divided("CC", routed=shares).train(), ids_of(4, 200)
    for _ in range(3):
        routing = model(ids, use_cache=False, output_routing=True).routing
    expected = [50, 100, 50] * 2
    for record, count in zip(routing, expected, strict=True):
        assert all(0 <= each - count <= 1 for each in record.kept.sum(1).tolist())  # the first token is a key
        assert record.threshold is None and (record.weights <= 1).all()
    learned = [(float(router.threshold), float(router.water_level)) for router in model.model.routers]
    assert len(set(learned)) == 6 and all(int(router.passes) == 3 for router in model.model.routers)
    for record, count in zip(model.eval()(ids, output_routing=True).routing, expected, strict=True):
        assert abs(record.kept.sum(1).float().mean() - count) < 12
    assert learned == [(float(router.threshold), float(router.water_level)) for router in model.model.routers]


def test_all_routers_learn_and_checkpointing_changes_nothing():
    found = {}
    for way in (None, False, True):
        model, ids = divided("C(TC)T").train(), ids_of(2, 30)
        if way is not None:
            model.gradient_checkpointing_enable({"use_reentrant": way})
            model.enable_input_require_grads()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found[way] = {name: parameter.grad for name, parameter in model.named_parameters()}
        found[way] |= dict(model.named_buffers())
        for router in model.model.routers:
            assert router.weight.grad.abs().sum() > 0
            if isinstance(router, LightHeavyRouter):
                assert int(router.passes) == 1
    for way in (False, True):
        for name, values in found[None].items():
            torch.testing.assert_close(found[way][name], values, atol=1e-5, rtol=1e-4, msg=name)


def test_padding_and_packing_change_neither_loss_nor_running_means():
    texts = [ids_of(1, 30), ids_of(1, 17, 2)]
    padded = torch.zeros(2, 30, dtype=torch.long, device=DEVICE)
    mask = torch.zeros_like(padded)
    for row, text in enumerate(texts):
        padded[row, : text.shape[1]], mask[row, : text.shape[1]] = text[0], 1
    positions = torch.cat([torch.arange(30), torch.arange(17)])[None].to(DEVICE)
    inputs = [
        {"input_ids": padded, "attention_mask": mask},
        {"input_ids": torch.cat(texts, 1), "position_ids": positions},
    ]
    found = []
    for each in inputs:
        model = divided().train()
        logits = model(**each, use_cache=False).logits
        rows = [logits[0], logits[1, :17]] if len(logits) == 2 else logits[0].split([30, 17])
        means = [torch.stack([router.threshold, router.water_level]) for router in model.model.routers]
        found.append((torch.cat(list(rows)), torch.stack(means)))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_a_row_of_padding_alone_changes_neither_gradients_nor_running_means():
    ids, found = ids_of(2, 20), []
    for empty in (0, 1):
        model, mask = divided("C(TC)T").train(), torch.ones(2 + empty, 20, dtype=torch.long, device=DEVICE)
        mask[2:] = 0
        rows = torch.cat([ids, torch.zeros(empty, 20, dtype=torch.long, device=DEVICE)])
        labels = rows.masked_fill(mask == 0, -100)
        model(rows, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
        means = {name: buffer for name, buffer in model.named_buffers() if "routers" in name}
        found.append({name: parameter.grad for name, parameter in model.named_parameters()} | means)
        assert len(means) == 18
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-5, rtol=1e-4, msg=name)


def test_a_training_pass_works_out_each_water_level_once(monkeypatch):
    model, worked_out = divided("CTC").train(), []

    def counted(scores, *others):
        worked_out.append(scores)
        return water_level(scores, *others)

    monkeypatch.setattr("subllm.routing.light_heavy.water_level", counted)
    model(ids_of(2, 20), use_cache=False)
    assert len(worked_out) == len(model.model.routers) == 6
    assert all(router.passes == 1 for router in model.model.routers)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_leave_the_running_means_alone(odd):
    model, ids = divided("C").train(), ids_of(2, 20)
    states = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for router in model.model.routers:
            router.weight[0] = odd
    model(ids, use_cache=False)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, states[name]), name


@torch.no_grad()
def test_saving_and_loading_give_the_same_model(tmp_path):
    model, ids = divided("C(TT)C"), ids_of(2, 20)
    for number, router in enumerate(model.model.routers):
        if isinstance(router, LightHeavyRouter):
            router.threshold.fill_(0.1 * number)
            router.water_level.fill_(-0.2 * number)
    model.save_pretrained(tmp_path)
    loaded, found = SubllmForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.to(DEVICE).eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generating_with_a_cache_equals_generating_without(structure, options):
    model, ids = divided(structure, seed=3), ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options |= {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    found = [model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False)]
    assert torch.equal(*found)


@torch.no_grad()
def test_the_cache_holds_heavy_keys_of_routed_tokens_only_and_is_cropped_with_the_rest():
    model, ids = divided("C"), ids_of(2, 20)
    whole = model(ids, use_cache=True, output_routing=True)
    cache, size = whole.past_key_values, 8 * 4
    keys = int(whole.routing[1].kept.sum())
    assert cache.level_bytes == [2 * 40 * size, 0, 2 * keys * size, 0]  # one key/value head is light, one heavy
    cache.crop(-5)
    again = model(ids[:, 15:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole.logits[:, 15:], atol=1e-4, rtol=1e-4)
    cache.reset()
    assert cache.used_bytes == 0


@torch.no_grad()
def test_an_adapter_gives_the_same_before_and_after_it_is_merged():
    model, ids = divided("CT"), ids_of(2, 20)
    plain = model(ids).logits
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    found = adapted(ids).logits
    assert (found - plain).abs().max() > 0.1
    with adapted.disable_adapter():
        CLOSE(adapted(ids).logits, plain)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, found, atol=1e-4, rtol=1e-4)


def test_an_adapter_learns():
    adapted = get_peft_model(divided("C"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    ids = ids_of(2, 20)
    adapted(ids, labels=ids).loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)


def test_the_running_means_stand_still_while_the_routers_are_frozen(tmp_path):
    model, ids = divided("CT"), ids_of(2, 20)
    plain = model(ids).logits
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).train()
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], 0.5)
    for _ in range(3):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        found = adapted(ids).logits
        CLOSE(PeftModel.from_pretrained(divided("CT"), tmp_path)(ids).logits, found)
        with adapted.disable_adapter():
            CLOSE(adapted(ids).logits, plain)
    assert (found - plain).abs().max() > 1e-3


def test_routers_are_trained_beside_an_adapter_if_peft_is_asked_to():
    names = ["query", "key_value"]
    adapted = get_peft_model(divided("C"), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=names)).train()
    ids = ids_of(2, 20)
    adapted(ids, labels=ids).loss.backward()
    copies = {name: each for name, each in adapted.named_modules() if isinstance(each, LightHeavyRouter)}
    trained = [router for name, router in copies.items() if "modules_to_save" in name]
    assert len(trained) == 2 and all(router.passes == 1 and router.weight.grad.any() for router in trained)


def test_the_running_means_of_a_model_in_bfloat16_move_in_small_steps():
    model = divided("C")
    router = model.model.layers[0].routers["mlp"]
    router.threshold.fill_(0.1234567)
    model.to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16 and router.threshold.equal(torch.tensor(0.1234567, device=DEVICE))
    zeros = torch.zeros(1, 20, 32, dtype=torch.bfloat16, device=DEVICE)
    selected = router.select(LevelTokens(zeros, torch.arange(20)[None], None, Lengths.even(0, 1)), training=True)
    for mean in [1.0] * 20 + [1.05] * 400:
        router.follow(replace(selected, of_pass=torch.tensor([mean, mean])))
    assert router.threshold.item() == pytest.approx(1.05, abs=1e-3)
    assert router.water_level.item() == pytest.approx(1.05, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"), [({"use_dora": True}, "DoraLinearVariant"), ({"lora_bias": True}, "LoRA that has a bias")]
)
@torch.no_grad()
def test_adapters_whose_effect_is_more_than_a_matrix_are_refused_until_they_are_merged(settings, said):
    names, ids = ["q_proj", "down_proj"], ids_of(2, 20)
    adapted = get_peft_model(
        divided("C", attention_bias=True, mlp_bias=True), LoraConfig(r=4, target_modules=names, **settings)
    )
    with pytest.raises(TypeError, match=f"cannot do so with a {said}; use adapters of the kind LoRA"):
        adapted(ids)
    with adapted.disable_adapter():
        adapted(ids)
    adapted.merge_and_unload()(ids)


def _shard():
    linear = nn.Linear(32, 48, bias=False)
    linear.weight = nn.Parameter(linear.weight[:24].detach())
    return linear


@pytest.mark.parametrize("given", [lambda: nn.Linear(32, 48, bias=False, device="meta"), _shard], ids=["away", "shard"])
def test_weights_that_cannot_be_divided_are_refused(given):
    model = divided("C")
    model.model.layers[0].mlp.up_proj = given()
    with pytest.raises(TypeError, match="plain linear layer in memory"):
        model(ids_of(1, 3))


@pytest.mark.parametrize("biased", ["attention_bias", "mlp_bias"])
@torch.no_grad()
def test_biases_are_divided_like_the_weights(biased):
    model, ids = divided("CC", window=30, **{biased: True}), ids_of(2, 30)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    kept = torch.ones(6, 30, dtype=torch.bool, device=DEVICE)
    whole = model(ids, probe=Probe(override=Replay(kept, kept.float())))
    torch.testing.assert_close(whole.logits, routing_off(model)(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_pass_resumes_before_a_block():
    model, ids = divided("C(TC)C"), ids_of(1, 20)
    probe = Probe(record=True, keep_snapshots=True)
    whole = model(ids, probe=probe)
    assert sorted(probe.snapshots) == list(range(1, 11))
    for level, snapshot in probe.snapshots.items():
        again = model(ids, probe=Probe(record=True, resume=snapshot))
        CLOSE(again.logits, whole.logits)
        assert len(again.routing) == len(whole.routing), level


def test_the_parts_of_a_block_add_up_to_a_llama_block():
    config = divided("C").config
    dense = 2 * 32 * (4 + 4 + 2 + 2) * 8 + 6 * 32 * 48
    found = linear_operations(config)
    assert sum(found.values()) == dense
    assert found["mlp"] == 6 * 32 * 32 and found["key_value"] == 4 * 32 * 8


def test_heavy_products_run_on_routed_tokens_only(monkeypatch):
    """The rows that the matrix products read, counted as they are called."""
    model, ids = divided("C"), ids_of(1, 40)
    products, plain = [], F.linear

    def counted(states, weight, *bias):
        products.append(2 * states.shape[:-1].numel() * weight.numel())
        return plain(states, weight, *bias)

    monkeypatch.setattr("subllm.model.light_heavy.F.linear", counted)
    with torch.no_grad():
        routing = model.model(ids, output_routing=True).routing
    parts = linear_operations(model.config)
    routed = dict(zip(("query", "key_value", "mlp"), (int(record.kept.sum()) for record in routing), strict=True))
    assert sum(products) == 40 * parts["light"] + sum(parts[kind] * count for kind, count in routed.items())
