"""The thresholds of a conversion follow what the routers recorded."""

from dataclasses import replace

import pytest
import torch

from subllm.checkpoints.dense import routing_off
from subllm.convert.distillation import AdaptOptions, Distillation, add_adapters
from subllm.convert.scorers import calibrate, fit_scorers
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

    for changes, said in [
        ({"steps": 0}, "steps is 0"),
        ({"precision": "int8"}, "float32, bf16"),
        ({"average": 1.0}, "less than 1"),
        ({"inner_rank": -1}, "inner_rank is -1"),
        ({"rank": 0}, "rank is 0"),
        ({"start_retention": 1.5}, "start_retention is 1.5; it is a share"),
        ({"start_retention": 0.0}, "start_retention is 0.0"),
    ]:
        with pytest.raises(TrainingError, match=said):
            AdaptOptions(**changes)


def test_the_blocks_inside_levels_can_have_adapters_of_another_rank():
    model = tiny_model("T(T)T", retention_ratio=0.5)
    adapted = add_adapters(model, 2, inner_rank=5)
    shapes = {name: parameter.shape[0] for name, parameter in adapted.named_parameters() if "lora_A" in name}
    assert shapes and all(rank == (5 if ".layers.1." in name else 2) for name, rank in shapes.items())


def test_a_run_ends_with_the_running_average_of_its_weights_also_after_it_was_resumed(distillation):
    decay, steps = 0.75, [1.0, 5.0, 2.0, -3.0]
    distillation.options = replace(distillation.options, average=decay)
    scale = distillation.model.model.bypasses[0].scale
    for at, value in enumerate(steps):
        with torch.no_grad():
            scale.fill_(value)
        distillation.average()
        if at == 1:
            state = {name: tensor.clone() for name, tensor in reversed(distillation.trained().items())}
            with torch.no_grad():
                scale.fill_(9)
            distillation.average()
            distillation.restore(state)
            assert scale.unique().item() == value
    distillation.take_average()
    expected = steps[0]
    for value in steps[1:]:
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(scale.detach(), torch.full_like(scale, expected))


def test_a_checkpoint_of_other_parameters_is_refused(distillation):
    from subllm import TrainingError

    state = distillation.trained()
    scale = next(name for name in state if name.endswith("bypasses.0.scale"))
    for wrong in ({name: state[name] for name in state if name != scale}, state | {"routers.0.bias": state[scale]}):
        with pytest.raises(TrainingError, match=r"another conversion: 1 of its tensors differ.*(routers|scale)"):
            distillation.restore(wrong)


def test_without_an_average_a_run_ends_with_its_last_weights(distillation):
    before = {name: tensor.clone() for name, tensor in distillation.trained().items()}
    scale = distillation.model.model.bypasses[0].scale
    distillation.average()
    with torch.no_grad():
        scale.fill_(0.25)
    distillation.take_average()
    assert distillation.trained().keys() == before.keys() and scale.unique().item() == 0.25


@pytest.mark.parametrize("moved", [0.0, 0.4], ids=["fitted", "moved, and calibrated"])
def test_a_threshold_lies_between_two_tokens_so_that_rounding_moves_none(moved):
    model = tiny_model("T(T)T", retention_ratio=0.5).eval()
    dense = routing_off(model)
    ids = torch.randint(1, 97, (3, 27), generator=torch.Generator().manual_seed(3))
    directions = fit_scorers(model, dense, [ids])
    if moved:
        with torch.no_grad():
            model.model.routers[0].weight += moved * directions[0]
        calibrate(model, directions, [ids])
    (record,) = model(ids, output_routing=True).routing
    scores = record.scores[record.reached].sort().values
    below, above = scores[scores <= 0].max(), scores[scores > 0].min()
    assert int(record.kept.sum()) in (40, 41)  # of 81: the median is a token
    assert min(-below, above) > 0.3 * (above - below)
