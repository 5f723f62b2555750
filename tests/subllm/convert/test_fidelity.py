"""Fidelity is what its parts say, and a log holds it whole."""

import math

import pytest
import torch
import torch.nn.functional as F

from subllm.checkpoints.dense import routing_off
from subllm.convert.fidelity import Fidelity, measure_fidelity
from tests.conftest import tiny_model

FOUND = Fidelity(3.0, 4.0, 0.1, 0.7, [0.6, 0.4], 96)


def test_a_log_names_levels_from_1_and_older_logs_are_read():
    entry = FOUND.to_log()
    assert (entry["eval_retention_1"], entry["eval_retention_2"]) == (0.6, 0.4)
    assert "eval_retention_0" not in entry
    older = {name: value for name, value in entry.items() if "retention" not in name}
    older |= {"step": 5, "eval_retention_1": 0.4, "eval_retention_0": 0.6}
    assert Fidelity.from_log(entry) == Fidelity.from_log(older) == FOUND


def test_every_number_is_that_of_whole_logits():
    model = tiny_model("T(T)T").eval()
    dense = routing_off(model)
    blocks = torch.randint(1, 97, (3, 20), generator=torch.Generator().manual_seed(0))
    found = measure_fidelity(model, dense, blocks)
    with torch.no_grad():
        output = model(blocks, output_routing=True)
        ours, theirs = (each[:, :-1].flatten(0, 1) for each in (output.logits, dense(blocks).logits))
    targets = blocks[:, 1:].flatten()
    assert found.perplexity == pytest.approx(math.exp(F.cross_entropy(ours, targets)), rel=1e-4)
    assert found.dense_perplexity == pytest.approx(math.exp(F.cross_entropy(theirs, targets)), rel=1e-4)
    surprise = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean()
    assert found.divergence == pytest.approx(surprise.item(), abs=1e-5)
    assert found.agreement == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    (record,) = output.routing
    assert found.retention == pytest.approx([(record.kept.sum() / record.reached.sum()).item()])
