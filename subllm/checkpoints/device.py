"""Devices and dtypes: what this machine has, what can be used of it, defaults, and display names.

A device is "cpu", or an accelerator whose module in torch tells times and memory: "cuda" (NVIDIA and AMD) and "xpu"
(Intel) do. Everything here and in `analysis.cost.measure` asks `torch.get_device_module`, and names no kind of device.
"""

import logging
import os
from functools import cache
from typing import Any

import pynvml
import torch
from transformers import PreTrainedModel

from ..errors import CheckpointError, DeviceError, first_line
from ..model.graphs import capturing

DTYPES = ("float32", "bfloat16", "float16")  # that models run in
_NEEDED = (  # of a device's module, to measure time and memory
    "Event",
    "current_stream",
    "empty_cache",
    "get_device_name",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "synchronize",
)
_FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # of torch's messages that are no class of their own
_log = logging.getLogger(__name__)


def pick_device() -> str:
    """The best device of this machine for this process: a GPU that works, else "cpu".

    `torchrun` gives every process the GPU of its rank. Where the CPU is taken although there is a GPU, the log says
    why, once.
    """
    names = _names("cuda")
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if own < len(names):
        names.insert(0, names.pop(own))
    found = next((name for name in names if not _fault(name)), "cpu")
    if found == "cpu":
        _tell(tuple(map(str, device_faults())))
    return found


def usable_devices() -> list[str]:
    """All devices that work, the best first; "cuda" is the only GPU, "cuda:0" the first of several."""
    found = torch.accelerator.current_accelerator(check_available=True)
    kinds = dict.fromkeys(["cuda", "cpu", *([found.type] if found is not None else [])])
    return [name for kind in kinds for name in _names(kind) if not _fault(name)]


def device_faults() -> list[DeviceError]:
    """Why GPUs of this machine cannot be used; none for a machine without one, or whose user hides it from torch."""
    if torch.cuda.is_available():
        return [_unusable(name) for name in _names("cuda") if _fault(name)]
    card = _hidden_card()
    if not card:
        return []
    return [DeviceError("There is a GPU ({card}), but torch cannot use it: {error}", card=card, error=_no_cuda())]


def check_device(device: str) -> None:
    """Check that a device can be used.

    Args:
        device: as a user named it.

    Raises:
        DeviceError: if there is no such device, it does not work, or torch cannot measure on it.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise DeviceError(
            "{device!r} is not a device; this machine has {devices}.",
            device=device,
            devices=", ".join(usable_devices()),
        ) from error
    if kind != "cpu" and not _measures(kind):
        raise DeviceError(
            "{device!r} cannot be used here: torch does not measure the memory of such devices. This machine has "
            "{devices}.",
            device=device,
            devices=", ".join(usable_devices()),
        )
    if _fault(device):
        raise _unusable(device)


def pick_dtype(device: str) -> str:
    """The default dtype of a device: bfloat16 on a GPU that computes in it, float16 on others, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if has_bfloat16(device) else "float16"
    return "float32"


def chosen_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """A device that can be used, and a dtype that models run in.

    Args:
        device: `pick_device` chooses by default.
        dtype: `pick_dtype` chooses by default.

    Raises:
        CheckpointError: if there is no such dtype.
        DeviceError: if the device cannot be used.
    """
    device = device or pick_device()
    check_device(device)
    dtype = dtype or pick_dtype(device)
    if dtype not in DTYPES:
        raise CheckpointError(
            "A model cannot be loaded in the dtype {dtype!r}; allowed are {dtypes}.",
            dtype=dtype,
            dtypes=", ".join(DTYPES),
        )
    return device, dtype


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16: the CPU, AMD's GPUs, and NVIDIA's from compute capability 8.0 (Ampere) on.

    `torch.cuda.is_bf16_supported` also counts GPUs that emulate it, which is slow, and asks the current GPU alone.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return kind == "cpu"


def dtypes_of(device: str) -> list[str]:
    """Dtypes that make sense on a device, the default first."""
    return list(dict.fromkeys([pick_dtype(device), "float32", "bfloat16" if has_bfloat16(device) else "float16"]))


def device_name(device: torch.device) -> str:
    """Display name of a device, such as "NVIDIA H100 80GB HBM3" or "CPU, 2 threads"."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    threads = torch.get_num_threads()
    return f"CPU, {threads} threads" if threads != 1 else "CPU, 1 thread"


def dtype_name(model: PreTrainedModel) -> str:
    """Name of a model's dtype, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    full = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    return full or isinstance(error, torch.OutOfMemoryError | MemoryError)


def release_memory() -> None:
    """Give back to all accelerators what torch keeps of them without using it."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        with capturing:
            torch.get_device_module(found).empty_cache()


def _names(kind: str) -> list[str]:
    if kind == "cpu":
        return ["cpu"]
    module: Any = torch.get_device_module(kind)
    count = module.device_count() if module.is_available() and _measures(kind) else 0
    return [kind] if count == 1 else [f"{kind}:{index}" for index in range(count)]


def _measures(kind: str) -> bool:
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:  # such as "meta"
        return False
    return all(hasattr(module, name) for name in _NEEDED)


def _unusable(device: str) -> DeviceError:
    return DeviceError("The device {device!r} cannot be used: {error}", device=device, error=_fault(device))


@cache
def _fault(device: str) -> str:
    """What went wrong when a device ran one product of matrices; empty if nothing did, or if only its memory is full.

    A GPU that is too old for this build of torch is available all the same, and fails with its first kernel.
    """
    try:
        ones = torch.ones(2, 2, device=device)
        (ones @ ones).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return "" if is_out_of_memory(error) else first_line(error)
    return ""


def _hidden_card() -> str:
    """Name of an NVIDIA GPU that the driver knows, unless a user hides it; empty if there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
    except pynvml.NVMLError:
        return ""


def _no_cuda() -> str:
    """Why torch finds no GPU, in its own words: a build for CPUs, or a driver that is older than its CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return f"torch {torch.__version__} finds none"


@cache
def _tell(reasons: tuple[str, ...]) -> None:
    for reason in reasons:
        _log.warning("%s The CPU is used.", reason.rstrip(".") + ".")
