"""Mixture-of-Depths against the numbers of independent implementations, and what it promises beside every router."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from subllm import Probe, SubllmConfig, SubllmForCausalLM
from subllm.checkpoints.dense import routing_off
from subllm.routing import ROUTERS, Entry, Lengths, LevelTokens, Packing, Replay
from tests.conftest import DEVICE, GOLDEN, tiny_config, tiny_model

CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
STRUCTURE = "T(T)T(T)T"
WAYS = [{}, {"predictor": True}, {"router_weight": "unit"}]


def tokens_of(hidden, mask=None):
    positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    return LevelTokens(hidden, positions, mask, Lengths.even(0, len(hidden)))


def mod_model(seed=0, **fields):
    """A small model whose predictors, if it has any, keep about half of the tokens."""
    return tiny_model(STRUCTURE, seed, router="mod", retention_ratio=0.25, **fields).to(DEVICE)


def ids_of(rows, length, seed=1):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


class TestOneBlock:
    """The router around one LLaMA block, on random streams (golden `mod_block`)."""

    @pytest.fixture
    def block(self):
        return {name: tensor.to(DEVICE) for name, tensor in load_file(GOLDEN / "mod_block.safetensors").items()}

    def router(self, block, **fields):
        router = ROUTERS["mod"](tiny_config("T(T)T", router="mod", retention_ratio=0.25, **fields), 1).to(DEVICE)
        weights = {"weight": block["router.weight"]}
        if fields.get("predictor"):
            weights |= {
                f"predictor.{name}": block[f"predictor.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")
            }
        router.load_state_dict(weights)
        return router

    def through(self, block, router, selection):
        """The stream behind the level: what is added to the kept tokens passed the block."""
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
            attn_implementation="eager",
        )  # fmt: skip
        layer = LlamaDecoderLayer(config, 0).to(DEVICE)
        layer.load_state_dict({k.removeprefix("weights.block."): v for k, v in block.items() if "weights.block" in k})
        rotary, rows = LlamaRotaryEmbedding(config).to(DEVICE), []
        for row, kept in zip(block["x"], selection.kept, strict=True):
            places = kept.nonzero().T
            hidden = row[None, places[0]]
            hole = torch.full((1, 1, len(places[0]), len(places[0])), -torch.inf, device=DEVICE).triu(1)
            rows.append(layer(hidden, position_embeddings=rotary(hidden, places), attention_mask=hole)[0])
        packing = Packing.of(selection.kept)
        processed = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        tokens = tokens_of(block["x"])
        change = (
            router.leave(tokens, processed, Entry(selection, packing)) * packing.gather(selection.weights)[..., None]
        )
        return processed, packing.scatter_add(block["x"], change)

    @torch.no_grad()
    def test_training_keeps_the_highest_weights_and_multiplies_with_them(self, block):
        router = self.router(block)
        selection = router.select(tokens_of(block["x"]), training=True)
        CLOSE(selection.scores, block["router.logits"])
        assert torch.equal(selection.kept.nonzero()[:, 1].view(2, 6), block["train.kept"])
        CLOSE(selection.weights[selection.kept].view(2, 6), block["train.weights"])
        CLOSE(selection.loss[None], block["train.aux_loss"])
        processed, stream = self.through(block, router, selection)
        CLOSE(processed, block["train.block"])
        CLOSE(stream, block["train.out.update"])

    @torch.no_grad()
    def test_inference_keeps_positive_weights(self, block):
        router = self.router(block)
        selection = router.select(tokens_of(block["x"]), training=False)
        assert torch.equal(selection.kept, block["sample.kept_mask"]) and selection.loss is None
        CLOSE(self.through(block, router, selection)[1], block["sample.out.update"])

    @torch.no_grad()
    def test_a_predictor_decides_and_the_weight_stays(self, block):
        router = self.router(block, predictor=True)
        selection = router.select(tokens_of(block["x"]), training=False)
        CLOSE(selection.scores, block["predictor.logits"])
        assert torch.equal(selection.kept, block["predictor.logits"] > 0)
        CLOSE(selection.weights, block["router.logits"] * selection.kept)
        assert (selection.weights < 0).any()
        CLOSE(self.through(block, router, selection)[1], block["predictor.out.update"])
        trained = router.select(tokens_of(block["x"]), training=True)
        assert torch.equal(trained.kept.nonzero()[:, 1].view(2, 6), block["train.kept"])
        CLOSE(trained.loss[None], block["predictor.loss"])


class TestWholeModel:
    """A decoder of four blocks, every other one with a router (golden `mod_model`)."""

    def model(self, tensors, **fields):
        config = SubllmConfig(
            structure="T(T)T(T)", router="mod", retention_ratio=0.25, vocab_size=96, hidden_size=32,
            intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, **fields,
        )  # fmt: skip
        model, weights = SubllmForCausalLM(config).eval(), {}
        for name, tensor in tensors.items():
            if name.startswith("weights."):
                name = name.removeprefix("weights.").replace("model.routers.", "model.subsamplers.")
                if "predictors" in name:
                    _, _, number, rest = name.split(".", 3)
                    name = f"model.subsamplers.{number}.predictor.{rest}"
                weights[name] = tensor
        if not fields:
            weights = {name: tensor for name, tensor in weights.items() if "predictor" not in name}
        model.load_state_dict(weights)
        return model.to(DEVICE)

    @pytest.mark.parametrize("tag", ["train", "sample", "predictor"])
    @torch.no_grad()
    def test_every_state_and_decision(self, tag):
        tensors = {name: tensor.to(DEVICE) for name, tensor in load_file(GOLDEN / "mod_model.safetensors").items()}
        model, events = self.model(tensors, **({"predictor": True} if tag == "predictor" else {})), []
        model.train(tag == "train")
        output = model(tensors["input_ids"], use_cache=False, probe=Probe(record=True, observe=events.append))
        CLOSE(output.logits, tensors[f"expected.{tag}.logits"])
        states = [events[0].before.hidden_states, *(event.after.hidden_states for event in events)]
        if tag != "predictor":
            assert len(states) == 1 + len("T(T)T(T)")
            for index, state in enumerate(states):
                CLOSE(state, tensors[f"expected.{tag}.state.{index:02d}"])
        for index, record in enumerate(output.routing):
            expected = f"expected.{tag}.routing.{index}"
            assert torch.equal(record.kept[0].nonzero().T, tensors[f"{expected}.kept"])
            CLOSE(record.weights[record.kept][None], tensors[f"{expected}.weight"])
            CLOSE(record.scores, tensors[f"{expected}.{'score' if tag == 'predictor' else 'logit'}"])
        if tag == "train":
            losses = [tensors[f"expected.train.routing.{index}.aux_loss"] for index in range(2)]
            CLOSE(output.router_loss[None], sum(losses))
        else:
            assert output.router_loss is None


@pytest.mark.parametrize("fields", WAYS)
@torch.no_grad()
def test_any_beginning_gives_the_same_outputs(fields):
    model, ids = mod_model(**fields), ids_of(2, 30)
    whole = model(ids, output_routing=True)
    assert all(0 < record.kept.sum() < 60 for record in whole.routing)
    for length in (1, 2, 7, 29):
        torch.testing.assert_close(model(ids[:, :length]).logits, whole.logits[:, :length], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_rule_of_training_gives_beginnings_other_outputs():
    model, ids = mod_model().train(), ids_of(2, 30)
    whole, beginning = model(ids, use_cache=False).logits, model(ids[:, :15], use_cache=False).logits
    assert (whole[:, :15] - beginning).abs().max() > 0.1


@pytest.mark.parametrize("fields", WAYS)
@settings(max_examples=10)
@given(data=st.data())
@torch.no_grad()
def test_cached_decoding_in_any_chunks_equals_the_full_forward(fields, data):
    model, ids = mod_model(**fields), ids_of(1, 24)
    cache, logits, position = None, [], 0
    while position < 24:
        chunk = data.draw(st.integers(1, 24 - position))
        output = model(ids[:, position : position + chunk], past_key_values=cache)
        cache, position = output.past_key_values, position + chunk
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", WAYS)
@torch.no_grad()
def test_with_every_token_kept_at_weight_one_it_is_the_llama(fields):
    model, ids = mod_model(**fields), ids_of(2, 30)
    everything = [torch.ones(30, dtype=torch.bool, device=DEVICE)] * 2
    whole = model(ids, probe=Probe(override=Replay(everything, [each.float() for each in everything])))
    CLOSE(whole.logits, routing_off(model)(ids).logits)


@pytest.mark.parametrize("fields", WAYS)
def test_padding_changes_neither_the_decisions_nor_the_loss_of_training(fields):
    model, ids = mod_model(**fields).train(), ids_of(2, 30)
    mask = torch.ones_like(ids)
    mask[1, 17:] = 0
    alone = [
        model(ids[row : row + 1, :length], output_routing=True, use_cache=False) for row, length in ((0, 30), (1, 17))
    ]
    batch = model(ids, attention_mask=mask, output_routing=True, use_cache=False)
    for level in range(2):
        kept = batch.routing[level].kept
        assert kept.sum(1).tolist() == [7, 4]  # int(0.25 · 30), int(0.25 · 17)
        assert torch.equal(kept[1, :17], alone[1].routing[level].kept[0])
    weighted = (30 * alone[0].router_loss + 17 * alone[1].router_loss) / 47
    torch.testing.assert_close(batch.router_loss, weighted, atol=1e-4, rtol=1e-4)


def test_at_least_one_token_is_kept_in_training():
    model = tiny_model("T(T)T", router="mod", retention_ratio=0.1).to(DEVICE).train()
    assert model(ids_of(2, 5), output_routing=True).routing[0].kept.sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fields", WAYS)
def test_the_loss_of_the_routers_is_added_in_training_only(fields, checkpointing):
    model, ids = mod_model(router_loss=0.5, **fields).train(), ids_of(2, 30)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    output = model(ids, labels=ids, use_cache=False)
    plain = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, plain + 0.5 * output.router_loss)
    output.loss.backward()
    for router in model.model.subsamplers:
        assert all(parameter.grad.abs().sum() > 0 for parameter in router.parameters())
    found = model.eval()(ids, labels=ids)
    assert found.router_loss is None
    torch.testing.assert_close(found.loss, F.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def test_the_loss_of_a_step_is_that_of_its_passes():
    model, ids = mod_model(router_loss=0.5).train(), ids_of(4, 30)
    whole = model(ids, labels=ids, use_cache=False).loss
    passes = [model(part, labels=part, use_cache=False, num_items_in_batch=4 * 29).loss for part in ids.split(2)]
    torch.testing.assert_close(sum(passes), whole)


def test_predictors_learn_from_the_stream_without_changing_it():
    model, ids = mod_model(predictor=True).train(), ids_of(2, 30)
    model(ids, use_cache=False).router_loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if ".predictor." in name}


@torch.no_grad()
def test_a_unit_weight_is_one_and_has_the_gradient_of_the_score():
    model, scored = mod_model(router_weight="unit"), mod_model()
    model.load_state_dict(scored.state_dict())
    ids = ids_of(1, 30)
    record = model(ids, output_routing=True).routing[0]
    assert torch.equal(record.weights, record.kept.float())
    assert torch.equal(record.kept, scored(ids, output_routing=True).routing[0].kept)
    router = model.model.subsamplers[0]
    hidden = torch.randn(1, 9, 32, device=DEVICE)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(router.weigh(tokens_of(hidden)).sum(), router.weight)
    torch.testing.assert_close(gradient, hidden.sum((0, 1)))


@torch.no_grad()
def test_a_moved_threshold_keeps_other_tokens_with_the_same_weights():
    router = mod_model().model.subsamplers[0]
    tokens = tokens_of(torch.randn(1, 40, 32, device=DEVICE))
    scores = router.score(tokens.hidden_states)
    selection = router.decide(tokens, scores, -0.5)
    assert torch.equal(selection.kept, scores > -0.5) and (selection.weights < 0).any()
    torch.testing.assert_close(selection.weights, scores * selection.kept)


@pytest.mark.parametrize("fields", WAYS)
@torch.no_grad()
def test_saving_and_loading_give_the_same_model(fields, tmp_path):
    model, ids = mod_model(**fields), ids_of(2, 20)
    model.save_pretrained(tmp_path)
    loaded, found = SubllmForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("bypasses" in name for name in loaded.state_dict())
    assert torch.equal(loaded.to(DEVICE).eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generating_with_a_cache_equals_generating_without(options):
    model, ids = mod_model(seed=3), ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options |= {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    found = [model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False)]
    assert torch.equal(*found)


def test_adapters_leave_the_routers_as_they_are_and_train():
    from peft import LoraConfig, get_peft_model

    model, ids = mod_model().train(), ids_of(2, 20)
    before = model(ids, use_cache=False).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    output = adapted(input_ids=ids, labels=ids, use_cache=False)
    torch.testing.assert_close(output.logits, before)
    output.loss.backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)
