"""The arguments that all trainings share."""

import pytest
import torch

from subllm.runs import trainer


@pytest.fixture
def two_gpus(monkeypatch):
    """What a machine with two GPUs says of itself, while tensors stay on the CPU."""
    monkeypatch.setattr(trainer, "pick_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")


def test_a_second_gpu_neither_doubles_the_batch_nor_makes_replicas(two_gpus, tmp_path):
    arguments = trainer.training_arguments(tmp_path, per_device_train_batch_size=4, max_steps=1)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == arguments.per_device_train_batch_size
