"""Measuring: the peak is what was allocated at once, and passes take turns."""

import time

import pytest
import torch

from analysis.measure import alternate, free_bytes, peak_bytes, resident_bytes, timed

CPU = torch.device("cpu")


def test_the_peak_counts_what_is_alive_at_once():
    def run():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = first + first  # 2 MB at once
        del first, second
        return torch.empty(1_500_000, dtype=torch.uint8)

    assert peak_bytes(run, CPU) == 2_000_000


def test_passes_take_turns_and_swap_their_order():
    order = []
    took = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(each) for each in took.values()] == [3, 3]


def test_the_system_sees_memory_that_a_pass_touches():
    size = 200_000_000
    touched = resident_bytes(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    untouched = resident_bytes(lambda: torch.empty(size, dtype=torch.uint8), CPU)
    if touched is None or untouched is None:
        pytest.skip("this system does not tell")
    assert touched == pytest.approx(size, rel=0.1)
    assert untouched < size / 2, "memory that is only reserved is not taken"
    assert free_bytes(CPU) > size


def test_waiting_takes_time_on_the_wall_and_none_of_the_processor():
    took = timed(lambda: time.sleep(0.2), CPU)
    assert took.seconds > 0.2 > took.busy
    assert took.joules == 0


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@cuda
def test_a_gpu_counts_memory_time_and_energy():
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)
    assert peak_bytes(lambda: square + square, device) == 4 * 4096**2
    assert resident_bytes(lambda: square + square, device) >= 0
    took = timed(lambda: [square @ square for _ in range(200)], device)
    assert took.seconds > 0
    assert took.joules >= 0
    assert free_bytes(device) > 0
