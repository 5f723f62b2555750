"""The thresholds of a conversion follow what the routers recorded."""

import pytest
import torch

from subllm.checkpoints.dense import routing_off
from subllm.convert.distillation import AdaptOptions, Distillation
from tests.conftest import tiny_model


@pytest.fixture
def distillation():
    model = tiny_model("T(T)T", retention_ratio=0.5).eval()
    direction = torch.zeros(model.config.hidden_size)
    direction[0] = 1.0
    options = AdaptOptions(steps=4, rank=2, length=24, start_retention=0.5)
    return Distillation(model, routing_off(model), [direction], options)


def test_the_share_kept_is_what_the_router_recorded(distillation):
    ids = torch.randint(1, 97, (2, 24), generator=torch.Generator().manual_seed(0))
    distillation(ids)
    (record,) = distillation.model(ids, output_routing=True).routing
    before = distillation.scorers[0].clone()
    assert distillation.control_retention(0) == pytest.approx([record.kept.float().mean().item()])
    error = record.above_threshold.flatten().quantile(0.5)
    moved = (distillation.scorers[0] - before).detach()
    assert torch.sign(moved[0]) == -torch.sign(error) and not moved[1:].any()


def test_scales_are_put_back_at_their_limits(distillation):
    scale = distillation.model.model.bypasses[0].scale
    with torch.no_grad():
        scale[:3] = torch.tensor([-0.5, 0.25, 1.5])
    distillation.limit_scales()
    assert scale[:3].tolist() == [0.0, 0.25, 1.0]


def test_options_that_cannot_be_are_refused():
    from subllm import TrainingError

    for changes, said in [({"steps": 0}, "steps is 0"), ({"precision": "int8"}, "float32, bf16")]:
        with pytest.raises(TrainingError, match=said):
            AdaptOptions(**changes)
