"""Devices and number formats: what is picked, what is refused, and what a machine says that does not use its GPU.

No GPU is needed: torch's answers about GPUs are those of a machine that has them.
"""

import logging

import pynvml
import pytest
import torch

from subllm import DeviceError
from subllm.checkpoints import device
from subllm.checkpoints.device import (
    check_device,
    device_faults,
    device_name,
    dtypes_of,
    has_bfloat16,
    is_out_of_memory,
    pick_device,
    pick_dtype,
    usable_devices,
)
from subllm.checkpoints.load import load_checkpoint


@pytest.fixture
def machine(monkeypatch):
    """Make torch tell of GPUs, given what goes wrong with the first kernel on each ("" if nothing does)."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(device, "_tell", device._tell.__wrapped__)  # as often as it is asked

    def make(*faults, capabilities=()):
        names = ["cuda"] if len(faults) == 1 else [f"cuda:{index}" for index in range(len(faults))]
        known = dict(zip(names, faults, strict=True))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(faults))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(faults))
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda name: capabilities[torch.device(name).index or 0]
        )
        monkeypatch.setattr(device, "_fault", lambda name: known.get(name, ""))

    return make


def test_the_cpu_is_picked_where_there_is_no_gpu(machine, caplog):
    machine()
    assert pick_device() == "cpu"
    assert usable_devices() == ["cpu"]
    assert device_faults() == [] and not caplog.records
    assert pick_dtype("cpu") == "float32"
    assert dtypes_of("cpu") == ["float32", "bfloat16"]
    assert device_name(torch.device("cpu")).startswith("CPU, ")


def test_every_gpu_is_offered_and_the_first_that_works_is_picked(machine):
    machine("")
    assert (pick_device(), usable_devices()) == ("cuda", ["cuda", "cpu"])
    machine("", "")
    assert (pick_device(), usable_devices()) == ("cuda:0", ["cuda:0", "cuda:1", "cpu"])
    machine("no kernel image is available", "")
    assert (pick_device(), usable_devices()) == ("cuda:1", ["cuda:1", "cpu"])


def test_each_process_of_torchrun_picks_the_gpu_of_its_rank(machine, monkeypatch):
    machine("", "")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == "cuda:1"
    machine("")  # each process sees its own GPU only
    assert pick_device() == "cuda"


def test_a_gpu_without_kernels_is_not_used_and_the_log_says_why(machine, caplog):
    machine("CUDA error: no kernel image is available for execution on the device")
    with caplog.at_level(logging.WARNING):
        assert pick_device() == "cpu"
    (record,) = caplog.records
    assert record.getMessage().endswith("no kernel image is available for execution on the device. The CPU is used.")
    (fault,) = device_faults()
    assert fault.values["device"] == "cuda"
    with pytest.raises(DeviceError, match="'cuda' cannot be used: CUDA error: no kernel image"):
        check_device("cuda")


def test_a_gpu_that_torch_does_not_see_is_named_unless_its_user_hides_it(machine, monkeypatch):
    machine()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "Tesla K80")

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore.")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_faults() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (fault,) = device_faults()
    assert str(fault).startswith("There is a GPU (Tesla K80), but torch cannot use it: The NVIDIA driver")
    assert "More" not in str(fault)


def test_a_kernel_is_tried_and_full_memory_is_no_fault(monkeypatch):
    assert device._fault.__wrapped__("cpu") == ""
    assert device._fault.__wrapped__("cuda") if not torch.cuda.is_available() else True

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "ones", full)
    assert device._fault.__wrapped__("cpu") == ""


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), ["float16", "float32"]), ((8, 0), ["bfloat16", "float32"]), ((12, 0), ["bfloat16", "float32"])],
    ids=["T4", "A100", "Blackwell"],
)
def test_bfloat16_is_picked_where_that_very_gpu_computes_in_it(machine, monkeypatch, capability, expected):
    monkeypatch.setattr(torch.version, "hip", None)
    machine("", "", capabilities=[(9, 0), capability])
    assert dtypes_of("cuda:1") == expected
    assert pick_dtype("cuda:1") == expected[0]
    assert pick_dtype("cuda:0") == "bfloat16"


def test_amds_gpus_compute_in_bfloat16(machine, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    machine("", capabilities=[(0, 0)])
    assert has_bfloat16("cuda")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "'gpu' is not a device; this machine has cpu"),
        ("mps", "'mps' cannot be used here: torch does not measure the memory of such devices"),
        ("meta", "'meta' cannot be used here"),
        ("cuda", "'cuda' cannot be used: "),
        ("xpu:3", "'xpu:3' cannot be used: "),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_read(tmp_path, name, message):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=message):
        load_checkpoint(tmp_path / "nowhere", name, "float32")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("Expected all tensors to be on the same device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_by_its_words(error, expected):
    assert is_out_of_memory(error) == expected
