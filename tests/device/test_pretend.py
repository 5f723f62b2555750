"""The pretend device refuses what a GPU refuses, and counts what costs time there."""

import pytest
import torch

from . import pretend
from .pretend import NAME, books


def test_operations_of_one_device_give_the_cpus_numbers_and_stay_there():
    left, right = torch.arange(12.0).reshape(3, 4), torch.ones(4, 5)
    product = left.to(NAME) @ right.to(NAME)
    assert product.device == torch.device(NAME, 0)
    assert torch.equal(product.cpu(), left @ right)


def test_gradients_are_those_of_the_cpu():
    weights = torch.arange(6.0).requires_grad_()
    there = torch.arange(6.0, device=NAME).requires_grad_()
    for each in (weights, there):
        (each**3).sum().backward()
    assert torch.equal(there.grad.cpu(), weights.grad)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there: there + torch.ones(3),
        lambda there: there + torch.ones(3, device=f"{NAME}:1"),
        lambda there: torch.cat([there, torch.ones(3)]),
        lambda there: there.numpy(),
        lambda there: torch.rand(3, generator=torch.Generator(), device=NAME),
        lambda there: torch.ones(3).index_select(0, there.long()),
    ],
)
def test_what_a_gpu_refuses_raises(wrong):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        wrong(torch.ones(3, device=NAME))


@pytest.mark.parametrize(
    "wait",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there.tolist(),
        lambda there: there.cpu(),
        lambda there: there.nonzero(),
        lambda there: there[there > 0],
    ],
)
def test_waits_of_the_host_are_counted_with_their_line(wait):
    there = torch.ones(3, device=NAME)
    with books() as counted:
        wait(there)
    assert sum(counted.waits.values()) == 1
    assert next(iter(counted.waits)).startswith("tests/device/test_pretend.py:")


def test_numbers_that_come_from_the_host_are_counted_as_copies():
    with books() as counted:
        torch.tensor([1, 2, 3], device=NAME)
        torch.ones(3).to(NAME)
        torch.ones(3, device=NAME)
    assert sum(counted.copies.values()) == 2 and not counted.waits
    assert pretend.NAME == NAME
