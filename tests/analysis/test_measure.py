"""Measuring: the peak is what was allocated at once, and passes take turns."""

import torch

from analysis.measure import alternate, peak_bytes

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
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(times) for times in seconds.values()] == [3, 3]
