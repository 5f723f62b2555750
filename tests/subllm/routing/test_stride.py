"""The stride router against Zipformer's own modules, and what merging promises beside every router."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from subllm import Closed, Probe, SubllmCache, SubllmConfig, SubllmForCausalLM
from subllm.checkpoints.dense import routing_off
from subllm.errors import ConfigurationError
from subllm.routing import Bypass, Entry, Lengths, LevelTokens, Packing, Replay, Selection
from subllm.routing.stride import StrideRouter
from tests.conftest import DEVICE, GOLDEN, tiny_config, tiny_model

CLOSE = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
SAME = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
CASES = {  # structure, routers, shares
    "one level": ("T(T)T", ["stride"], [1 / 3]),
    "side by side": ("T(TT)(T)T", ["stride", "stride"], [0.5, 0.25]),
    "nested": ("T(T(T)T)T", ["stride", "stride"], [0.5, 1 / 3]),
    "inside SUBLLM": ("T(T(T)T)(T)T", ["subllm", "stride", "stride"], [0.64, 0.5, 1 / 3]),
    "around SUBLLM": ("(T(T)T)T(T)", ["stride", "subllm", "mod"], [0.5, 0.64, 0.5]),
}


def stride_model(case, seed=0, **fields):
    structure, routers, shares = CASES[case]
    return tiny_model(structure, seed, router=routers, retention_ratio=shares, **fields).to(DEVICE)


def ids_of(rows, length, seed=1):
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def tokens_of(hidden):
    positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    return LevelTokens(hidden, positions, None, Lengths.even(0, len(hidden)))


@pytest.mark.parametrize("stride", [2, 4])
class TestZipformer:
    """The router around two LLaMA blocks (golden `zipformer`), whose groups are shifted so that none sees ahead."""

    @pytest.fixture
    def golden(self):
        return {name: tensor.to(DEVICE) for name, tensor in load_file(GOLDEN / "zipformer.safetensors").items()}

    def router(self, golden, stride):
        router = StrideRouter(tiny_config("T(TT)T", router="stride", retention_ratio=1 / stride), 1).to(DEVICE)
        router.load_state_dict({"bias": golden[f"stride{stride}.weights.downsample.bias"]})
        return router

    def downsampled(self, x, bias):
        """Zipformer's groups: the last one is filled up with the last token."""
        missing = -x.shape[1] % len(bias)
        groups = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], 1).unflatten(1, (-1, len(bias)))
        return (groups * bias.softmax(0)[:, None]).sum(2)

    def inside(self, tokens, router):
        selection = router.select(tokens, training=True)
        entry = Entry(selection, Packing.of(selection.kept))
        return entry, router.enter(tokens, entry)

    @torch.no_grad()
    def test_groups_are_merged_as_zipformer_merges_them(self, golden, stride):
        router = self.router(golden, stride)
        _, merged = self.inside(tokens_of(golden["x"]), router)
        CLOSE(merged, golden[f"stride{stride}.causal.original.inside_before"])
        ahead = golden["x"][:, 1:]  # whose groups, of tokens 1 to s and so on, are those behind the first carrier
        CLOSE(merged[:, 1:], self.downsampled(ahead, router.bias)[:, : merged.shape[1] - 1])
        CLOSE(self.downsampled(golden["x"], router.bias), golden[f"stride{stride}.down"])

    @pytest.mark.parametrize("positions", ["original", "packed"])
    @torch.no_grad()
    def test_the_stream_behind_the_level_is_zipformers(self, golden, stride, positions):
        model = self.model(golden, stride, positions)
        closed = []

        def observe(event):
            if isinstance(event, Closed):
                closed.append(event)

        x = golden["x"]
        model.model(inputs_embeds=x, use_cache=False, probe=Probe(observe=observe))
        expected = {name: golden[f"stride{stride}.causal.{positions}.{name}"] for name in ("inside_after", "out")}
        CLOSE(closed[0].inside.hidden_states, expected["inside_after"])
        CLOSE(closed[0].after.hidden_states, expected["out"])

    @pytest.mark.parametrize("positions", ["original", "packed"])
    @torch.no_grad()
    def test_it_is_zipformers_token_by_token(self, golden, stride, positions):
        model, cache, found = self.model(golden, stride, positions), None, []
        for token in golden["x"].split(1, dim=1):
            probe = Probe(observe=lambda event: found.append(event) if isinstance(event, Closed) else None)
            cache = model.model(inputs_embeds=token, past_key_values=cache, use_cache=True, probe=probe).past_key_values
        after = torch.cat([event.after.hidden_states for event in found], 1)
        CLOSE(after, golden[f"stride{stride}.causal.{positions}.out"])

    def model(self, golden, stride, positions):
        model = tiny_model("(TT)", router="stride", retention_ratio=1 / stride, positions=positions).to(DEVICE)
        weights = {
            f"model.layers.{name.removeprefix('weights.blocks.')}": tensor
            for name, tensor in golden.items()
            if name.startswith("weights.blocks.")
        }
        weights["model.subsamplers.0.bias"] = golden[f"stride{stride}.weights.downsample.bias"]
        weights["model.bypasses.0.scale"] = golden["weights.bypass_scale"]
        _, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        return model


@pytest.mark.parametrize("number", [0, 1])
def test_limits_turn_the_gradients_of_bypass_scales_as_zipformers_do(number):
    golden = {name: tensor.to(DEVICE) for name, tensor in load_file(GOLDEN / "zipformer.safetensors").items()}
    bypass = Bypass(tiny_config("T(T)T", hidden_size=8, bypass_minimum=[0.2, 0.2])).to(DEVICE).train()
    with torch.no_grad():
        bypass.scale.copy_(torch.cat([golden["limit.parameter"], torch.full((3,), 0.5, device=DEVICE)]))
    gradient = torch.zeros(8, device=DEVICE)
    gradient[:5] = golden[f"limit.in{number}"]
    bypass(torch.ones(1, 1, 8, device=DEVICE)).backward(gradient[None, None])
    CLOSE(bypass.scale.grad[:5], golden[f"limit.grad{number}"])


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=6)
@given(st.integers(1, 22), st.integers(0, 20))
@torch.no_grad()
def test_any_beginning_gives_the_same_outputs(case, length, seed):
    model, ids = stride_model(case, seed), ids_of(2, 23, seed)
    SAME(model(ids[:, :length]).logits, model(ids).logits[:, :length])


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=6)
@given(data=st.data())
@torch.no_grad()
def test_cached_decoding_in_any_chunks_equals_the_full_forward(case, data):
    model, ids = stride_model(case), ids_of(3, 24)
    cache, logits, position = None, [], 0
    while position < 24:
        chunk = data.draw(st.integers(1, 24 - position))
        output = model(ids[:, position : position + chunk], past_key_values=cache)
        cache, position = output.past_key_values, position + chunk
        logits.append(output.logits)
    SAME(torch.cat(logits, 1), model(ids).logits)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_continues_as_each_row_alone(case, side):
    model, ids, lengths = stride_model(case), ids_of(4, 20), (20, 7, 1, 14)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    if side == "left":
        mask = mask.flip(1)
    cache, after = model(ids, attention_mask=mask).past_key_values, ids_of(4, 6, 2)
    logits = []
    for token in after.split(1, dim=1):  # rows reach their carriers at different tokens
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        logits.append(model(token, attention_mask=mask, past_key_values=cache).logits)
    for row, (own, real) in enumerate(zip(ids, mask[:, :20].bool(), strict=True)):
        alone = model(torch.cat([own[real], after[row]])[None]).logits[:, -6:]
        SAME(torch.cat(logits, 1)[row : row + 1], alone)


@pytest.mark.parametrize("case", ["one level", "side by side", "nested"])
@torch.no_grad()
def test_with_every_token_kept_each_is_a_group_of_its_own(case):
    model, ids = stride_model(case), ids_of(2, 23)
    for scale in model.model.bypasses.parameters():
        scale.fill_(1.0)
    everything = [torch.ones(23, dtype=torch.bool, device=DEVICE)] * model.config.parsed_structure.num_levels
    whole = model(ids, probe=Probe(override=Replay(everything, [each.float() for each in everything])))
    CLOSE(whole.logits, routing_off(model)(ids).logits)


@torch.no_grad()
def test_a_small_group_is_weighted_by_the_last_numbers_of_the_bias():
    router = StrideRouter(tiny_config("T(T)T", router="stride", retention_ratio=0.25), 1).to(DEVICE)
    torch.nn.init.normal_(router.bias)
    tokens = tokens_of(torch.randn(1, 6, 32, device=DEVICE))
    kept = torch.tensor([[True, False, True, False, False, True]], device=DEVICE)
    merged = router.enter(tokens, Entry(Replay([kept[0]], None)(1, router, tokens), Packing.of(kept)))
    weights = [router.bias[-size:].softmax(0) for size in (1, 2, 3)]
    groups = tokens.hidden_states[0].split((1, 2, 3))
    CLOSE(merged[0], torch.stack([weight @ group for weight, group in zip(weights, groups, strict=True)]))


@pytest.mark.parametrize("case", ["one level", "side by side", "nested"])
@torch.no_grad()
def test_an_edit_that_ends_leaves_groups_of_the_tokens_since_the_last_carrier(case):
    model, ids = stride_model(case), ids_of(2, 23)

    def dense_at_first(level, router, tokens):
        selection = router.select(tokens, training=False)
        return Selection.of(tokens, selection.kept | (tokens.positions < 10), selection.weights, everywhere=True)

    whole = model(ids, probe=Probe(override=dense_at_first)).logits
    cache = model(ids[:, :11], probe=Probe(override=dense_at_first)).past_key_values
    pieces = [model(piece, past_key_values=cache).logits for piece in ids[:, 11:].split(3, dim=1)]
    SAME(torch.cat(pieces, 1), whole[:, 11:])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_record_has_what_was_added_at_every_token_that_reached_the_level(case):
    model, ids, closed = stride_model(case), ids_of(2, 23), {}

    def observe(event):
        if isinstance(event, Closed):
            closed[event.level] = event

    output = model(ids, probe=Probe(record=True, observe=observe))
    for level, (router, record) in enumerate(zip(model.model.subsamplers, output.routing, strict=True), start=1):
        if not router.merges_tokens:
            continue
        event = closed[level]
        assert torch.equal(record.weights, record.reached.float())
        assert not record.kept[~record.reached].any() and record.scores is None and record.threshold is None
        for row in range(2):
            reached = record.reached[row].nonzero()[:, 0]
            assert torch.equal(record.kept[row].nonzero()[:, 0], reached[:: router.stride])
            own = slice(0, len(reached))
            change = (event.after.hidden_states - event.before.hidden_states)[row, own]
            CLOSE(record.contribution_norm[row, reached], change.norm(dim=-1))
            results = event.inside.hidden_states[row].repeat_interleave(router.stride, 0)[own]
            expected = (results - event.before.hidden_states[row, own]).norm(dim=-1)
            CLOSE(record.difference_norm[row, reached], expected)
        assert torch.equal(record.difference_norm.isnan(), ~record.reached)


@torch.no_grad()
def test_a_token_that_is_no_carrier_runs_no_block_of_the_level():
    model, ids = tiny_model("T(TT)T", router="stride", retention_ratio=0.25).to(DEVICE), ids_of(1, 12)
    cache, ran = model(ids[:, :9]).past_key_values, []
    for layer, name in ((model.model.layers[1].self_attn.q_proj, "inside"), (model.model.layers[0], "outside")):
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    for token in (9, 10, 11):
        model(ids[:, token : token + 1], past_key_values=cache)
    assert ran == ["outside"] * 3 and cache.levels[1].rows == (3,)
    model(ids[:, :1], past_key_values=cache)
    assert ran == ["outside"] * 3 + ["outside", "inside"] and cache.levels[1].rows == (4,)


class TestCache:
    """What a level carries from pass to pass."""

    @pytest.mark.parametrize("step", range(9))
    @torch.no_grad()
    def test_a_pass_that_is_interrupted_leaves_it_unchanged(self, step):
        model, ids = stride_model("side by side"), ids_of(2, 20)
        cache, events = model(ids[:, :10]).past_key_values, []

        def stop(event):
            events.append(event)
            if len(events) > step:
                raise KeyboardInterrupt

        before = [level.carried for level in cache.levels]
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 10:15], past_key_values=cache, probe=Probe(observe=stop))
        assert all(level.carried is held for level, held in zip(cache.levels, before, strict=True))
        SAME(model(ids[:, 10:], past_key_values=cache).logits, model(ids).logits[:, 10:])

    @pytest.mark.parametrize("case", CASES)
    @torch.no_grad()
    def test_rows_are_reordered_repeated_and_forgotten(self, case):
        model, ids = stride_model(case), ids_of(3, 20)
        cache, rows = model(ids[:, :8]).past_key_values, torch.tensor([2, 0, 0, 1])
        cache.reorder_cache(rows)
        SAME(model(ids[rows, 8:], past_key_values=cache).logits, model(ids[rows]).logits[:, 8:])
        cache.reset()
        cache = model(ids[:, :8], past_key_values=cache).past_key_values
        cache.batch_repeat_interleave(2)
        repeated = ids.repeat_interleave(2, 0)
        SAME(model(repeated[:, 8:], past_key_values=cache).logits, model(repeated).logits[:, 8:])

    @torch.no_grad()
    def test_tokens_cannot_be_removed_from_it_and_it_says_why(self):
        model, ids = stride_model("around SUBLLM"), ids_of(1, 10)
        cache = SubllmCache(model.config)
        assert not cache.is_croppable  # from the start: who asks before the first token must not plan to take it back
        model(ids, past_key_values=cache)
        assert not cache.is_croppable
        with pytest.raises(ValueError, match="Level 1 merges tokens, and its cache holds what its last group became"):
            cache.crop(-1)
        cache.crop(0)
        assert SubllmCache(tiny_config("T(T)T")).is_croppable

    @torch.no_grad()
    def test_generation_with_it_equals_generation_without(self):
        model, ids = stride_model("inside SUBLLM"), ids_of(2, 9)
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        for options in ({"do_sample": False}, {"num_beams": 3}):
            found = [
                model.generate(ids, attention_mask=mask, max_new_tokens=12, use_cache=cached, **options)
                for cached in (True, False)
            ]
            assert torch.equal(*found)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_forward_resumes_from_the_state_before_any_level(case):
    model, ids = stride_model(case), ids_of(1, 23)
    probe = Probe(record=True, keep_snapshots=True)
    whole = model(ids, use_cache=False, probe=probe)
    for snapshot in probe.snapshots.values():
        again = model(ids.expand(3, -1), use_cache=False, probe=Probe(record=True, resume=snapshot))
        SAME(again.logits, whole.logits.expand(3, -1, -1))
        for ours, other in zip(again.routing, whole.routing, strict=True):
            assert torch.equal(ours.kept, other.kept.expand(3, -1))


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_changes_no_gradient(case):
    model, ids = stride_model(case).train(), ids_of(2, 20)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
        assert gradient.any(), name


@torch.no_grad()
def test_autocast_comes_near_the_numbers_in_full():
    model, ids = stride_model("nested"), ids_of(2, 20)
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        cache = model(ids[:, :10]).past_key_values
        half = model(ids[:, 10:], past_key_values=cache).logits
    assert (half.float() - model(ids).logits[:, 10:]).abs().mean() < 0.1 * model(ids).logits.abs().mean()


@torch.no_grad()
def test_it_is_saved_and_loaded_and_lora_comes_back(tmp_path):
    model, ids = stride_model("nested"), ids_of(2, 20)
    model.save_pretrained(tmp_path / "model")
    loaded = SubllmForCausalLM.from_pretrained(tmp_path / "model").to(DEVICE).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    adapted = get_peft_model(loaded, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    SAME(merged(ids).logits, expected)
    assert (expected - model(ids).logits).abs().max() > 1e-3


def test_its_loss_falls_in_training():
    model = SubllmForCausalLM(tiny_config("T(TT)T", router="stride", retention_ratio=0.5)).to(DEVICE).train()
    ids, losses = ids_of(4, 24), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert model.model.subsamplers[0].bias.abs().max() > 0.01  # which begins at zero


@pytest.mark.parametrize(
    ("ratio", "found", "proposed"),
    [
        (0.64, "1/1.562", "0.5 for groups of 2 or 0.3333 for groups of 3"),
        (0.3, "1/3.333", "0.25 for groups of 4"),
        (0.334, "1/2.994", "0.3333 for groups of 3"),
        (0.5005, "1/1.998", "0.5 for groups of 2"),
        (0.999, "1/1.001", "0.5 for groups of 2"),
        (1.0, "1/1.0", "0.5 for groups of 2 or 0.3333 for groups of 3"),
    ],
)
def test_a_share_that_makes_no_whole_groups_is_refused(ratio, found, proposed):
    with pytest.raises(ConfigurationError, match=rf"(?s)retention_ratio is {ratio}, which is {found}.*{proposed}"):
        SubllmConfig(structure="T(T)T", router="stride", retention_ratio=ratio)


@pytest.mark.parametrize(
    ("ratio", "stride"), [(0.5, 2), (0.333, 3), (0.3333, 3), (1 / 3, 3), (0.1429, 7), (1e-5, 100_000)]
)
def test_shares_stand_for_whole_groups(ratio, stride):
    config = tiny_config("T(T)T", router="stride", retention_ratio=ratio)
    assert (config.strides, config.retention_ratios) == ([stride], [1 / stride])
