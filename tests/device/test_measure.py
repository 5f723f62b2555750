"""Devices are offered by name, and measured by their own clocks and counters."""

import pytest
import torch

from analysis.cost.calibration import _times
from analysis.cost.measure import anatomy, energy, free_bytes, peak_bytes, resident_bytes
from analysis.debug.attribution import attribute
from analysis.debug.target import Question
from subllm import DeviceError
from subllm.checkpoints.device import check_device, device_name, dtypes_of, pick_device, usable_devices
from subllm.checkpoints.load import load_checkpoint
from subllm.routing import Selection
from tests.conftest import tiny_model

from . import NAME, REAL, pretend
from .pretend import MEMORY, books

counting = pytest.mark.skipif(REAL, reason="only the pretend accelerator counts")


@pytest.fixture
def device():
    """The device; torch knows the pretend one by its name only once tests run."""
    return torch.device(NAME)


@counting
def test_all_devices_are_offered_with_their_names_and_the_cpu_is_preferred_to_kinds_that_nobody_tried():
    assert usable_devices() == ["cpu", f"{NAME}:0", f"{NAME}:1"]
    assert pick_device() == "cpu"
    assert device_name(torch.device(NAME, 1)) == "Pretend 1"
    assert dtypes_of(f"{NAME}:1") == ["float32", "float16"]
    check_device(f"{NAME}:1")


@counting
def test_a_kind_of_device_without_counters_is_refused(monkeypatch):
    monkeypatch.delattr(pretend._Module, "mem_get_info")
    assert usable_devices() == ["cpu"]
    with pytest.raises(DeviceError, match="does not measure the memory of such devices"):
        check_device(NAME)


def test_a_model_is_loaded_onto_its_device(device, tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, NAME, "float32")
    kinds = {tensor.device.type for tensor in (*checkpoint.model.parameters(), *checkpoint.model.buffers())}
    assert kinds == {device.type}


@counting
def test_memory_is_what_the_device_tells(device, monkeypatch):
    monkeypatch.setitem(MEMORY, "reserved", 3 << 30)
    monkeypatch.setitem(MEMORY, "allocated", 1 << 30)
    assert free_bytes(device) == (4 + 3 - 1) << 30
    assert peak_bytes(lambda: MEMORY.update(allocated=(1 << 30) + 5), device) == 5
    assert resident_bytes(lambda: MEMORY.update(reserved=MEMORY["reserved"] + 7), device) == 7


@pytest.mark.parametrize("structure", ["T(T(T)T)T", "(T)T"])
def test_a_pass_is_taken_apart_without_waiting_for_its_parts(device, structure):
    model = tiny_model(structure).to(NAME)
    ids = torch.randint(1, 97, (1, 30), generator=torch.Generator().manual_seed(0)).to(NAME)

    def everything(level, router, tokens):
        return Selection.of(tokens, torch.ones_like(tokens.positions, dtype=torch.bool), tokens.positions.float() * 0)

    with torch.inference_mode(), books() as counted:
        found = anatomy(model, lambda probe: model(ids, probe=probe), device, everything)
    assert len(found.steps) == len(structure) + 1
    assert all(seconds > 0 for seconds in found.steps[:-1])
    assert all(found.modules[name] > 0 for name in ("attention", "mlp", "norms", "scorer", "bypass", "head"))
    if not REAL:
        levels = model.config.parsed_structure.num_levels
        assert sum(counted.waits.values()) == levels + 2, "one per level, and before and after the whole pass"


def test_no_energy_is_told_where_nobody_counts_it(device):
    if device.type != "cuda":
        assert energy({"a": lambda: None}, device) == {"a": []}


def test_the_peak_of_an_attribution_is_measured_after_a_backward_pass():
    model = tiny_model("TT(T)T").to(NAME)
    ids = torch.arange(1, 9).numpy()
    plain = attribute(model, ids, Question(5), "input x gradient")
    found = attribute(model, ids, Question(5), "input x gradient", measure_memory=True)
    assert found.values == pytest.approx(plain.values, abs=1e-5)
    assert found.peak_bytes >= 0


@counting
def test_products_and_copies_are_timed(device):
    product, copy = _times(device, "float32", 8, 64)
    assert len(product) == len(copy) > 0
