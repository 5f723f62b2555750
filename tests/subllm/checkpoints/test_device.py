"""The device and the number format of this machine."""

import torch

from subllm.checkpoints.device import pick_device, pick_dtype


def test_device_and_dtype_are_picked():
    assert pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_dtype("cpu") == "float32"
