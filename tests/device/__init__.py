"""The model and its analyses on another device than the CPU: a pretend one, or the GPU of `SUBLLM_TEST_DEVICE`."""

import pytest

from tests.conftest import DEVICE

from . import pretend

REAL = DEVICE.type != "cpu"
NAME = str(DEVICE) if REAL else pretend.NAME
CLOSE = {"rtol": 2e-3, "atol": 2e-3} if REAL else {}  # other kernels round otherwise
NEAR = CLOSE or {"rtol": 1e-4, "atol": 1e-5}  # after many passes
counting = pytest.mark.skipif(REAL, reason="only the pretend accelerator counts")
