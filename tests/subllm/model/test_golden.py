"""The reference model's numbers decide what correct means."""

import torch

from subllm import Probe
from subllm.convert.reference import from_reference
from tests.conftest import DEVICE

TOLERANCE = 1e-4


def load(golden):
    case, tensors = golden[0], {name: tensor.to(DEVICE) for name, tensor in golden[1].items()}
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return from_reference(case["config"], weights).to(DEVICE), case, tensors


@torch.no_grad()
def test_prefill_equals_the_reference_in_every_state(golden):
    model, case, tensors = load(golden)
    events = []
    output = model(tensors["input_ids"][:, : case["prefill_len"]], probe=Probe(record=True, observe=events.append))
    states = [events[0].before.hidden_states, *(event.after.hidden_states for event in events)]
    torch.testing.assert_close(output.logits, tensors["expected.prefill.logits"], atol=TOLERANCE, rtol=0)
    assert len(states) == 1 + len(case["config"]["structure"])
    for index, state in enumerate(states):
        torch.testing.assert_close(state, tensors[f"expected.prefill.state.{index:02d}"], atol=TOLERANCE, rtol=0)
    assert len(output.routing) == len(case["kept_per_level"])
    for index, record in enumerate(output.routing):
        expected = {key: tensors[f"expected.prefill.subsample.{index}.{key}"] for key in ("score", "index", "weight")}
        reached = record.reached
        assert torch.equal(record.kept[reached].nonzero().T, expected["index"])
        torch.testing.assert_close(record.scores[reached][None], expected["score"], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(record.weights[record.kept][None], expected["weight"], atol=TOLERANCE, rtol=0)
        assert int(record.kept.sum()) == case["kept_per_level"][index][1]


@torch.no_grad()
def test_cached_decoding_equals_the_reference(golden):
    model, case, tensors = load(golden)
    start = case["prefill_len"]
    cache = model(tensors["input_ids"][:, :start]).past_key_values
    for step in range(case["decode_len"]):
        output = model(tensors["input_ids"][:, start + step, None], past_key_values=cache)
        expected = tensors["expected.decode.logits"][:, step]
        torch.testing.assert_close(output.logits[:, 0], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_cached_decoding_equals_our_own_prefill_at_every_depth(golden):
    model, _, tensors = load(golden)
    ids = tensors["input_ids"]
    full = model(ids).logits
    cache = model(ids[:, :20]).past_key_values
    steps = [model(ids[:, t, None], past_key_values=cache).logits for t in range(20, ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), full[:, 20:], atol=TOLERANCE, rtol=0)
