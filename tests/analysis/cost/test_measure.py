"""Measuring: the peak is what was allocated at once, and passes take turns."""

from types import SimpleNamespace

import pytest
import torch

from analysis.cost.measure import alternate, anatomy, free_bytes, peak_bytes, resident_bytes, timed
from subllm.routing import ROUTERS, Selection
from tests.conftest import tiny_model

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


def test_a_pass_takes_what_passed_on_both_clocks(monkeypatch):
    clocks = {"wall": 100.0, "processor": 7.0}
    fake = SimpleNamespace(perf_counter=lambda: clocks["wall"], process_time=lambda: clocks["processor"])
    monkeypatch.setattr("analysis.cost.measure.time", fake)
    assert timed(lambda: clocks.update(wall=105.0, processor=9.0), CPU) == (5.0, 2.0, 0.0)


@pytest.mark.parametrize("structure", ["T(T(T)T)T", "(T)T"])
@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_a_pass_is_taken_apart_without_changing_it(structure, router):
    model = tiny_model(structure, router=router)
    ids = torch.randint(1, 97, (1, 30), generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.inference_mode():
        found = anatomy(model, lambda probe: logits.append(model(ids, probe=probe).logits), CPU)
        torch.testing.assert_close(logits[0], model(ids).logits, rtol=0, atol=0)
    assert len(found.steps) == len(structure) + 1, "one for every character, and what lies around them"
    assert all(seconds > 0 for seconds in found.steps)
    assert all(found.modules[name] > 0 for name in ("attention", "mlp", "norms", "scorer", "bypass", "head", "rest"))
    brackets = sum(step for step, symbol in zip(found.steps, structure, strict=False) if symbol != "T")
    assert found.modules["scorer"] + found.modules["bypass"] < brackets


def test_what_decides_in_place_of_the_routers_is_timed_like_them():
    model, asked = tiny_model("T(T(T)T)T"), []

    def everything(level, router, tokens):
        asked.append(level)
        kept = torch.ones_like(tokens.positions, dtype=torch.bool)
        return Selection.of(tokens, kept, kept.float())

    with torch.inference_mode():
        found = anatomy(model, lambda probe: model(torch.arange(1, 9)[None], probe=probe), CPU, everything)
    assert asked == [1, 2]
    assert found.modules["scorer"] > 0


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
