"""This machine as a row of the hardware table, from one matrix product and one copy, measured."""

import os
from statistics import median

import torch

from subllm.checkpoints.device import device_name

from ..errors import AnalysisError
from .hardware import Hardware
from .measure import timed
from .sizes import BYTES

_WIDTH = {"cpu": 1536, "cuda": 8192}  # of the square matrices
_COPIED = {"cpu": 1 << 27, "cuda": 1 << 30}  # bytes
_REPEATS = 7


def this_machine(device: torch.device | str, dtype: str) -> Hardware:
    """Measure what a device reaches; takes a second.

    Args:
        device: to measure.
        dtype: of the matrices.

    Raises:
        AnalysisError: if the dtype is none that predictions know.
    """
    device = torch.device(device)
    if dtype not in BYTES:
        raise AnalysisError(
            "The dtype {dtype!r} cannot be predicted; allowed are {dtypes}.", dtype=dtype, dtypes=sorted(BYTES)
        )
    kind = "cuda" if device.type == "cuda" else "cpu"
    width, size = _WIDTH[kind], _COPIED[kind]
    left, right = torch.randn(2, width, width, device=device, dtype=getattr(torch, dtype))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = [], []
    for _ in range(_REPEATS):
        product.append(timed(lambda: left @ right, device).seconds)
        copy.append(timed(lambda: target.copy_(source), device).seconds)
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        name=device_name(device),
        operations={dtype: 2 * width**3 / median(product[1:])},
        bandwidth=2 * size / median(copy[1:]),  # a copy reads and writes
        memory=float(memory),
        source=f"measured here: a {width} × {width} matrix product, and a copy of {size >> 20} MiB",
    )
