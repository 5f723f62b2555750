"""A model whose blocks lie on two devices, as `device_map="auto"` puts them there."""

import pytest
import torch
from accelerate import dispatch_model

from subllm import Probe, SubllmCache, SubllmForCausalLM
from subllm.routing import routing_arrays
from tests.conftest import tiny_model

from . import NAME, REAL

pytestmark = pytest.mark.skipif(REAL, reason="takes two devices; the pretend accelerator has them")


def dispatched(model: SubllmForCausalLM, first: int, rest: str = f"{NAME}:1") -> SubllmForCausalLM:
    """The model with its first blocks on one device and everything else on another, as accelerate's map says."""
    blocks = range(len(model.model.layers))
    places = {f"model.layers.{block}": f"{NAME}:0" if block < first else rest for block in blocks}
    places |= {"model.embed_tokens": f"{NAME}:0"}
    places |= {f"model.{name}": rest for name in ("subsamplers", "bypasses", "norm", "rotary_emb")}
    return dispatch_model(model, places | {"lm_head": rest}, main_device=f"{NAME}:0", force_hooks=True)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("first", range(1, 7))
@pytest.mark.parametrize(
    ("positions", "router"),
    [
        ("original", "subllm"),
        ("parent", "subllm"),
        ("packed", ["stride", "subllm"]),
        ("original", ["subllm", "stride"]),
    ],
)
def test_blocks_may_be_cut_anywhere(first, rows, positions, router):
    whole = tiny_model("TT(T(T)T)TT", positions=positions, router=router)
    there = dispatched(tiny_model("TT(T(T)T)TT", positions=positions, router=router), first)
    ids = torch.randint(1, 97, (rows, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, :7] = 0
    probe = Probe(record=True)
    expected = whole(ids, attention_mask=mask, probe=probe)
    there_mask = mask.to(f"{NAME}:0")
    found = there(ids.to(f"{NAME}:0"), attention_mask=there_mask, probe=probe)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-5, rtol=1e-4)
    ours, theirs = (routing_arrays(each.routing, 30) for each in (found, expected))
    for name, array in theirs.items():
        torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(array), equal_nan=True, atol=1e-4, rtol=1e-4)
    cache, parts = SubllmCache(there.config), []
    for part in ids.split([20, 15, *[1] * 5], 1):
        read = sum(each.shape[1] for each in parts) + part.shape[1]
        out = there(part.to(f"{NAME}:0"), attention_mask=there_mask[:, :read], past_key_values=cache)
        parts.append(out.logits.cpu())
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected.logits[real], atol=1e-5, rtol=1e-4)
    assert {str(layer.keys.device) for layer in cache.layers} == {f"{NAME}:0", f"{NAME}:1"}


@torch.no_grad()
@pytest.mark.parametrize("router", ["subllm", "stride"])
def test_what_does_not_fit_may_stay_on_the_cpu(router):
    whole = tiny_model("TT(T(T)T)TT", router=router)
    there = dispatched(tiny_model("TT(T(T)T)TT", router=router), 5, rest="cpu")
    ids = torch.randint(1, 97, (2, 30), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(there.generate(ids.to(f"{NAME}:0"), **options).cpu(), whole.generate(ids, **options))


@torch.no_grad()
def test_generating_with_beams():
    whole = tiny_model("TT(T(T)T)TT")
    there = dispatched(tiny_model("TT(T(T)T)TT"), 3)
    ids = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(there.generate(ids.to(f"{NAME}:0"), **options).cpu(), whole.generate(ids, **options))
