"""This machine as a row of the hardware table, measured: a matrix product, a copy, and a model with little to do."""

import os
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from subllm import SubllmConfig
from subllm.checkpoints.device import device_name, release_memory

from ..errors import AnalysisError
from ..guard import full_device_reported
from .hardware import Hardware
from .launches import base_launches
from .measure import timed
from .sizes import BYTES

_WIDTH = {"cpu": 1536, "gpu": 8192}  # of the square matrices
_COPIED = {"cpu": 1 << 27, "gpu": 1 << 30}  # bytes
_BLOCKS, _PASSES = 8, 20  # of the tiny model
_REPEATS = 7


def this_machine(device: torch.device | str, dtype: str) -> Hardware:
    """Measure what a device reaches; takes a second.

    Args:
        device: to measure.
        dtype: of the matrices.

    Raises:
        AnalysisError: if the dtype is none that predictions know.
        RunStopped: if the device's free memory does not suffice.
    """
    device = torch.device(device)
    if dtype not in BYTES:
        raise AnalysisError(
            "The dtype {dtype!r} cannot be predicted; allowed are {dtypes}.", dtype=dtype, dtypes=sorted(BYTES)
        )
    kind = "cpu" if device.type == "cpu" else "gpu"
    width, size = _WIDTH[kind], _COPIED[kind]
    with full_device_reported(device):
        product, copy = _times(device, dtype, width, size)
        launch = _launch_seconds(device, dtype)
    release_memory()  # gigabytes, which nothing else here needs at once
    if kind == "gpu":
        memory = torch.get_device_module(device).mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name=device_name(device),
        operations={dtype: 2 * width**3 / median(product[1:])},
        bandwidth=2 * size / median(copy[1:]),  # a copy reads and writes
        memory=float(memory),
        source=f"measured here: a {width} × {width} matrix product, a copy of {size >> 20} MiB, and launches of a tiny "
        "model",
        launch_seconds=launch,
    )


def _times(device: torch.device, dtype: str, width: int, size: int) -> tuple[list[float], list[float]]:
    """Seconds of each product of square matrices, and of each copy of some bytes."""
    left, right = torch.randn(2, width, width, device=device, dtype=getattr(torch, dtype))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = [], []
    for _ in range(_REPEATS):
        product.append(timed(lambda: left @ right, device).seconds)
        copy.append(timed(lambda: target.copy_(source), device).seconds)
    return product, copy


@torch.inference_mode()
def _launch_seconds(device: torch.device, dtype: str) -> float:
    """Seconds per launch of a model that is too small to take any other time, in the pass that was disturbed least.

    A loop of additions would show a third of it: most of the time goes into Python and into views of tensors.
    """
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2}
    config = SubllmConfig(structure="T" * _BLOCKS, **sizes)
    llama: Any = LlamaForCausalLM(LlamaConfig(num_hidden_layers=_BLOCKS, **sizes, pad_token_id=0))
    model = llama.to(device, getattr(torch, dtype)).eval()
    ids = torch.ones(1, 1, dtype=torch.long, device=device)
    block, once = base_launches(config, "prefill", dtype)
    passes = [timed(lambda: model(ids, use_cache=True), device).seconds for _ in range(_PASSES)]
    return min(passes) / (_BLOCKS * block + once)
