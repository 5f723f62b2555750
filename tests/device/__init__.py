"""The model and its analyses on another device than the CPU: a pretend one, or the GPU of `SUBLLM_TEST_DEVICE`."""

import pytest
import torch

from subllm.model.graphs import CAPTURES
from tests.conftest import DEVICE

from . import pretend

REAL = DEVICE.type != "cpu"
NAME = str(DEVICE) if REAL else pretend.NAME
CLOSE = {"rtol": 2e-3, "atol": 2e-3} if REAL else {}  # other kernels round otherwise
NEAR = CLOSE or {"rtol": 1e-4, "atol": 1e-5}  # after many passes
GRAPHS = not REAL or torch.device(NAME).type in CAPTURES  # older versions of torch have none that can be trusted
counting = pytest.mark.skipif(REAL, reason="only the pretend accelerator counts")
