"""Measuring: the peak is what was allocated at once, and passes take turns."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from analysis.cost.measure import _handle, alternate, anatomy, energy, free_bytes, peak_bytes, resident_bytes, timed
from subllm.routing import ROUTERS, Bypass, Selection
from tests.architecture import ROOT
from tests.conftest import tiny_model

CPU = torch.device("cpu")


def test_the_peak_counts_what_is_alive_at_once():
    def run():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = first + first  # 2 MB at once
        del first, second
        return torch.empty(1_500_000, dtype=torch.uint8)

    assert peak_bytes(run, CPU) == 2_000_000


def test_measuring_the_peak_writes_nothing():
    """A server measures in every run, and its log is for what a person has to know."""
    measure = "import torch; from analysis.cost.measure import peak_bytes as peak; "
    measure += "print(peak(lambda: torch.ones(256), torch.device('cpu')))"
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", measure], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("1024\n", "")


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
    assert timed(lambda: clocks.update(wall=105.0, processor=9.0), CPU) == (5.0, 2.0)


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
    assert all(found.modules[name] > 0 for name in ("attention", "mlp", "norms", "scorer", "head", "rest"))
    has_bypass = any(isinstance(module, Bypass) for module in model.modules())
    assert (found.modules["bypass"] > 0) == has_bypass
    brackets = sum(step for step, symbol in zip(found.steps, structure, strict=False) if symbol != "T")
    assert found.modules["scorer"] + found.modules["bypass"] < brackets


@pytest.mark.parametrize("structure", ["CC", "TC(C)T"])
def test_light_heavy_blocks_have_attention_and_mlp_too(structure):
    """They divide the weights of these modules without calling them."""
    model = tiny_model(structure, window=5)
    ids = torch.randint(1, 97, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = anatomy(model, lambda probe: model(ids, probe=probe), CPU)
        assert not any(name in vars(layer) for layer in model.model.layers for name in ("attend", "transform"))
    brackets = sum(step for step, symbol in zip(found.steps, structure, strict=False) if symbol in "()")
    assert all(found.modules[name] > 0 for name in ("attention", "mlp", "norms", "scorer", "head", "rest"))
    assert (found.modules["gather and scatter"] > 0) == (brackets > 0), "what their routers take is no part of brackets"
    assert found.modules["gather and scatter"] <= brackets


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


@pytest.mark.gpu
def test_a_gpu_counts_memory_time_and_energy():
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)
    size = 4 * 4096**2
    assert size <= peak_bytes(lambda: square + square, device) < size + 2**21, "the allocator may round up"
    assert resident_bytes(lambda: square + square, device) >= 0
    assert timed(lambda: [square @ square for _ in range(200)], device).seconds > 0
    found = energy({"products": lambda: [square @ square for _ in range(20)]}, device, blocks=1, seconds=0.5)
    assert all(joules > 0 for joules in found["products"]), "none where the driver does not count"
    assert free_bytes(device) > 0


@pytest.fixture
def counter(monkeypatch):
    """A GPU whose energy counter is what a test says, and whose clock advances with every pass."""
    state = SimpleNamespace(joules=1000.0, seconds=0.0, handles=[])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    # a new object at every call, as pybind may give
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=Uuid()))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: state.handles.append(uuid) or uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: 1000 * state.joules)
    monkeypatch.setattr("analysis.cost.measure.time", SimpleNamespace(perf_counter=lambda: state.seconds))
    _handle.cache_clear()
    yield state
    _handle.cache_clear()


class Uuid:
    def __str__(self):
        return "1234-abcd"


def test_energy_is_counted_in_blocks_of_two_seconds_that_take_turns(counter):
    order = []

    def spend(name, joules):
        order.append(name)
        counter.seconds += 0.25
        counter.joules += joules

    passes = {"a": lambda: spend("a", 3.0), "b": lambda: spend("b", 5.0)}
    assert energy(passes, torch.device("cuda"), 2) == {"a": [3.0, 3.0], "b": [5.0, 5.0]}
    assert order == ["a"] * 8 + ["b"] * 16 + ["a"] * 8
    assert counter.handles == ["GPU-1234-abcd"], "the driver is asked once for the same GPU"


def test_no_energy_is_told_where_nobody_counts_it(counter, monkeypatch):
    ran = []
    assert energy({"a": lambda: ran.append(1)}, CPU) == {"a": []}

    def unknown(uuid):
        raise pynvml.NVMLError_NotFound  # a part of a GPU (MIG) has another kind of name

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", unknown)
    assert energy({"a": lambda: ran.append(1)}, torch.device("cuda")) == {"a": []}
    assert not ran


def test_memory_that_torch_keeps_without_using_it_is_free(monkeypatch):
    told = {"mem_get_info": (1 << 30, 80 << 30), "memory_reserved": 79 << 30, "memory_allocated": 10 << 30}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda", 1)) == 70 << 30
