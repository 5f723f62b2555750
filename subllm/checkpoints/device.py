"""Devices and dtypes: defaults and display names."""

import torch
from transformers import PreTrainedModel


def pick_device() -> str:
    """The best device of this machine: "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: str) -> str:
    """The default dtype of a device: bfloat16 (or float16) on a GPU, float32 on the CPU."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"


def device_name(device: torch.device) -> str:
    """Display name of a device, such as "NVIDIA H100 80GB HBM3" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} threads" if threads != 1 else "CPU, 1 thread"


def dtype_name(model: PreTrainedModel) -> str:
    """Name of a model's dtype, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")
