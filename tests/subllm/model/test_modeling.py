"""What a SUBLLM promises, over random structures, lengths, batches and all position modes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from subllm import Closed, Opened, Probe, Ran, SubllmCache, SubllmForCausalLM
from subllm.routing import ROUTERS
from subllm.routing.record import routing_arrays
from tests.conftest import DEVICE, tiny_model

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
STRUCTURES = [
    "TT",
    "T(T)T",
    "(T)",
    "T(T(T)T)T",
    "((T))T",
    "(T)(TT)T",
    "T(T(T)(T))T",
    "T(T()T)T",
    "CC",
    "C(TC)C",
    "T(C)T",
]


@st.composite
def cases(draw):
    structure = draw(st.sampled_from(STRUCTURES))
    light = {"window": draw(st.sampled_from([1, 2, 5, 40]))} if "C" in structure else {}
    model = tiny_model(
        structure,
        draw(st.integers(0, 50)),
        positions=draw(st.sampled_from(["original", "parent", "packed"])),
        router=[draw(st.sampled_from(sorted(ROUTERS))) for _ in range(structure.count("("))],
        **light,
    )
    lengths = draw(st.lists(st.integers(1, 24), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return model.to(DEVICE), [torch.randint(1, 97, (n,), generator=generator).to(DEVICE) for n in lengths]


def pad(rows, side):
    width = max(len(row) for row in rows)
    ids, mask = rows[0].new_zeros(2, len(rows), width)
    for index, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = row, 1
    return ids, mask


@settings(max_examples=40)
@given(cases(), st.data())
@torch.no_grad()
def test_cached_decoding_in_any_chunks_equals_the_full_forward(case, data):
    model, rows = case
    row = rows[0][None]
    full = model(row, output_routing=True)
    cache, logits, kept, position = None, [], [[] for _ in full.routing], 0
    while position < row.shape[1]:
        chunk = data.draw(st.integers(1, row.shape[1] - position))
        output = model(row[:, position : position + chunk], past_key_values=cache, output_routing=True)
        cache, position = output.past_key_values, position + chunk
        logits.append(output.logits)
        for index, record in enumerate(output.routing):
            kept[index] += record.kept[0].tolist()
    torch.testing.assert_close(torch.cat(logits, dim=1), full.logits, **TOLERANCE)
    assert kept == [record.kept[0].tolist() for record in full.routing]
    assert [sum(level.rows) for level in cache.levels[1:]] == [sum(level) for level in kept]


@settings(max_examples=40)
@given(cases(), st.sampled_from(["left", "right"]), st.sampled_from(["sdpa", "eager"]))
@torch.no_grad()
def test_a_row_alone_equals_the_row_in_a_padded_batch(case, side, attention):
    model, rows = case
    model.set_attn_implementation(attention)
    ids, mask = pad(rows, side)
    batch = model(ids, attention_mask=mask, output_routing=True)
    for index, row in enumerate(rows):
        alone = model(row[None], output_routing=True)
        torch.testing.assert_close(batch.logits[index][mask[index].bool()], alone.logits[0], **TOLERANCE)
        for ours, expected in zip(batch.routing, alone.routing, strict=True):
            for name in ("reached", "kept", "weights", "scores", "stream_norm", "difference_norm", "contribution_norm"):
                batched, single = getattr(ours, name), getattr(expected, name)
                assert (batched is None) == (single is None)
                if batched is not None:
                    torch.testing.assert_close(batched[index][: len(row)], single[0], equal_nan=True, **TOLERANCE)
            assert not ours.reached[index][len(row) :].any()


@settings(max_examples=30)
@given(cases(), st.sampled_from(["left", "right"]), st.integers(1, 5))
@torch.no_grad()
def test_a_padded_batch_continues_from_its_cache(case, side, new):
    model, rows = case
    ids, mask = pad(rows, side)
    generator = torch.Generator().manual_seed(new)
    following = torch.randint(1, 97, (len(rows), new), generator=generator).to(DEVICE)
    cache = model(ids, attention_mask=mask).past_key_values
    mask = torch.cat([mask, torch.ones_like(following)], dim=1)
    logits = model(following, attention_mask=mask, past_key_values=cache).logits
    for index, row in enumerate(rows):
        alone = model(torch.cat([row, following[index]])[None]).logits[0, -new:]
        torch.testing.assert_close(logits[index], alone, **TOLERANCE)


@settings(max_examples=30)
@given(cases(), st.data())
@torch.no_grad()
def test_a_later_token_changes_nothing_earlier(case, data):
    model, rows = case
    row = rows[0][None]
    cut = data.draw(st.integers(0, row.shape[1] - 1))
    changed = row.clone()
    changed[:, cut] = changed[:, cut] % 96 + 1
    before, after = model(row, output_routing=True), model(changed, output_routing=True)
    torch.testing.assert_close(before.logits[:, :cut], after.logits[:, :cut], **TOLERANCE)
    for ours, other in zip(before.routing, after.routing, strict=True):
        assert torch.equal(ours.kept[:, :cut], other.kept[:, :cut])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_without_brackets_it_is_a_llama(attention):
    model = tiny_model("TTTT", attn_implementation=attention)
    fields = {k: v for k, v in model.config.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation=attention)).eval()
    llama.load_state_dict(model.state_dict())
    ids = torch.randint(1, 97, (3, 40))
    torch.testing.assert_close(model(ids).logits, llama(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@torch.no_grad()
def test_everything_and_nothing_kept(sign):
    model = tiny_model("T(T(T)T)T")
    for subsampler in model.model.subsamplers:
        torch.nn.init.zeros_(subsampler.weight)
    model.model.subsamplers[0].score = lambda hidden: torch.full(hidden.shape[:2], sign)
    model.model.subsamplers[1].score = lambda hidden: torch.full(hidden.shape[:2], -sign)
    ids = torch.randint(1, 97, (2, 10))
    output = model(ids, output_routing=True)
    assert [int(record.kept[0].sum()) for record in output.routing] == ([10, 0] if sign > 0 else [0, 0])
    steps, cache = [], None
    for column in range(10):
        step = model(ids[:, column, None], past_key_values=cache)
        cache = step.past_key_values
        steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), output.logits, **TOLERANCE)


@torch.no_grad()
def test_a_level_may_keep_nothing_whatever_its_rotary_embedding():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model("T(T)T", positions="parent", rope_parameters=rope)
    torch.nn.init.zeros_(model.model.subsamplers[0].weight)
    ids = torch.randint(1, 97, (2, 10))
    assert not model(ids, output_routing=True).routing[0].kept.any()


@torch.no_grad()
def test_stream_before_plus_contribution_is_the_stream_after():
    model = tiny_model("T(T)T")
    events = []
    probe = Probe(record=True, observe=events.append)
    record = model(torch.randint(1, 97, (1, 30)), probe=probe).routing[0]
    closed = events[3]
    difference = (closed.after.hidden_states - closed.before.hidden_states).norm(dim=-1)
    torch.testing.assert_close(difference, record.contribution_norm, **TOLERANCE)
    dropped = record.reached & ~record.kept
    assert 0 < dropped.sum() < 30
    assert torch.equal(closed.after.hidden_states[dropped], closed.before.hidden_states[dropped])


@torch.no_grad()
def test_events_come_in_order_and_join_without_a_gap():
    model = tiny_model("T(T(T)T)T")
    events = []
    model(torch.randint(1, 97, (2, 30)), probe=Probe(observe=events.append))
    assert [type(event) for event in events] == [Ran, Opened, Ran, Opened, Ran, Closed, Ran, Closed, Ran]
    assert [event.level for event in events] == [0, 1, 1, 2, 2, 2, 1, 1, 0]
    for event, following in itertools.pairwise(events):
        before = following.inside if isinstance(following, Closed) else following.before
        assert before is event.after


@torch.no_grad()
def test_an_observer_that_stops_the_forward_leaves_the_cache_as_it_was():
    model = tiny_model("T(T)T")
    ids = torch.randint(1, 97, (1, 12))
    cache = model(ids[:, :6]).past_key_values

    def stop(event):
        if isinstance(event, Closed):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model(ids[:, 6:], past_key_values=cache, probe=Probe(observe=stop))
    logits = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids).logits[:, 6:], **TOLERANCE)
    empty = SubllmCache(model.config)
    with pytest.raises(InterruptedError):
        model(ids.expand(3, -1), past_key_values=empty, probe=Probe(observe=stop))
    logits = model(ids, past_key_values=empty).logits  # with fewer rows, as after a lack of memory
    torch.testing.assert_close(logits, model(ids).logits, **TOLERANCE)


@pytest.mark.parametrize("structure", ["T(T(T)T)T", "T(C)T"])
def test_what_was_read_in_inference_mode_is_continued_outside_of_it(structure):
    model, ids = tiny_model(structure), torch.randint(1, 97, (2, 12))
    with torch.inference_mode():
        cache = model(ids[:, :6], past_key_values=SubllmCache(model.config)).past_key_values
    with torch.no_grad():
        steps = [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(6, 12)]
        torch.testing.assert_close(torch.cat(steps, 1), model(ids).logits[:, 6:], **TOLERANCE)


@torch.no_grad()
def test_blocks_inside_levels_are_not_told_the_lengths_of_the_whole_sequence(monkeypatch):
    model, ids, told = tiny_model("T(T)T"), torch.randint(1, 97, (1, 9)), []

    def kernel(module, *args, **kwargs):
        told.append(kwargs)
        return sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", kernel)
    lengths = torch.tensor([0, 9], dtype=torch.int32)
    model(ids, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths, max_length_q=9, max_length_k=9)
    assert len(told) == 3
    assert not any(name.startswith(("cu_seq_lens", "max_length")) for kwargs in told for name in kwargs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_reaches_scorers_and_bypass_scales(checkpointing):
    model = tiny_model("T(T(T)T)T").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(1, 97, (2, 40))
    output = model(ids, labels=ids, output_routing=True, use_cache=False)
    output.loss.backward()
    assert [record.kept.sum(1).tolist() for record in output.routing] == [[26, 26], [17, 17]]  # ceil(0.64 · parent)
    for module in [*model.model.subsamplers, *model.model.bypasses]:
        (parameter,) = module.parameters()
        assert parameter.grad.abs().sum() > 0


def test_the_dense_twin_compiles_in_one_graph():
    model = tiny_model("TTT")
    ids = torch.randint(1, 97, (1, 16))
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits, **TOLERANCE)


class TestGenerate:
    """`generate()` against decoding without a cache."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"do_sample": True},
            {"num_beams": 3},
            {"num_beams": 3, "num_return_sequences": 2},
            {"prompt_lookup_num_tokens": 3},
        ],
        ids=["greedy", "sampling", "beams", "several", "lookup"],
    )
    def test_with_cache_equals_without(self, options):
        model = tiny_model("T(T(T)T)T", seed=3)
        ids = torch.randint(1, 97, (1, 9), generator=torch.Generator().manual_seed(1))
        results = []
        for use_cache in (True, False):
            if not use_cache and "prompt_lookup_num_tokens" in options:
                options = {}
            torch.manual_seed(5)
            results.append(model.generate(ids, max_new_tokens=12, use_cache=use_cache, eos_token_id=None, **options))
        assert torch.equal(*results)

    def test_left_padded_batch_equals_each_row_alone(self):
        model = tiny_model("T(T(T)T)T", seed=3)
        rows = [torch.randint(1, 97, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 8, 5)]
        ids, mask = pad(rows, "left")
        batch = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None)
        for index, row in enumerate(rows):
            alone = model.generate(row[None], max_new_tokens=10, do_sample=False, eos_token_id=None)
            assert batch[index, -10:].tolist() == alone[0, -10:].tolist()

    def test_continues_from_a_cache_that_is_cropped(self):
        model = tiny_model("T(T)T")
        ids = torch.randint(1, 97, (1, 20))
        with torch.no_grad():
            cache = model(ids).past_key_values
            cache.crop(-7)
            logits = model(ids[:, 13:], past_key_values=cache).logits
            torch.testing.assert_close(logits, model(ids).logits[:, 13:], **TOLERANCE)


def test_dropped_tokens_do_not_grow_the_cache():
    model = tiny_model("T(T)T")
    cache = SubllmCache(model.config)
    with torch.no_grad():
        record = model(torch.randint(1, 97, (1, 50)), past_key_values=cache, output_routing=True).routing[0]
    per_token = 2 * 2 * 8 * 4  # keys and values, 2 heads of 8 channels, float32
    assert cache.used_bytes == per_token * (50 + 50 + int(record.kept.sum()))


def test_another_cache_is_refused():
    from transformers import DynamicCache

    with pytest.raises(TypeError, match="DynamicCache"):
        tiny_model("T(T)T")(torch.ones(1, 3, dtype=torch.long), past_key_values=DynamicCache())


def test_save_and_load_round_trip(tmp_path):
    model = tiny_model("T(T)T", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = SubllmForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, 97, (1, 20))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_blocks_are_named_for_what_divides_a_model_among_devices():
    for structure in ("T(T)T", "T(C)T", "CC"):
        model = tiny_model(structure)
        assert {type(layer).__name__ for layer in model.model.layers} == set(model._no_split_modules)


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_equals_cpu():
    model = tiny_model("T(T(T)T)T")
    ids = torch.randint(1, 97, (3, 40))
    expected = model(ids).logits
    torch.testing.assert_close(model.cuda()(ids.cuda()).logits.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("structure", "routers"),
    [
        ("T(T)T(T)T", ["stride", "mod"]),
        ("T(T)T(T(T))T", ["subllm", "stride", "subllm"]),
        ("CT(T)T", ["subllm"]),
        ("C(TC)T(T)", ["mod", "stride"]),
    ],
)
@torch.no_grad()
def test_each_row_that_resumes_has_the_routing_of_the_whole_pass(structure, routers):
    """Also that of levels closed before, with what edits named and thresholds on the device."""

    def decide(level, router, tokens):
        found = router.select(tokens, training=False)
        threshold = None if found.scores is None else torch.zeros(len(found.kept), 1, device=DEVICE)
        return replace(found, edited=tokens.positions % 3 == 0, threshold=threshold)

    model = tiny_model(structure, router=routers, retention_ratio=0.5).to(DEVICE)
    ids = torch.randint(1, 97, (1, 20), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    probe = Probe(record=True, keep_snapshots=True, override=decide)
    whole = model(ids, use_cache=False, probe=probe)
    expected = routing_arrays(whole.routing, 20)
    for snapshot in probe.snapshots.values():
        again = model(ids.expand(3, -1), use_cache=False, probe=Probe(record=True, override=decide, resume=snapshot))
        torch.testing.assert_close(again.logits, whole.logits.expand(3, -1, -1), **TOLERANCE)
        for row in range(3):
            found = routing_arrays(again.routing, 20, row)
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, atol=1e-4, rtol=1e-4, err_msg=name)
