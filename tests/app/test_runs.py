"""Models of all users: what one of them opens never touches what another works with."""

import gc
import shutil
import weakref

import pytest
import torch

from app import runs
from subllm.checkpoints import DENSE_TWIN, load_checkpoint


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    """Five copies of a checkpoint, which no test before has opened."""
    return [shutil.copytree(tiny_checkpoint, tmp_path / str(number)) for number in range(5)]


@pytest.mark.parametrize("device", runs.devices())
def test_a_model_in_use_stays_as_it_is_and_its_memory_is_free_when_its_last_user_lets_go(folders, device):
    checkpoint, dense = runs.load(folders[0], device, "float32")
    ids = torch.arange(1, 9, device=device)[None]
    before = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    logits = checkpoint.model(ids).logits
    for folder in folders[1:]:
        runs.load(folder, device, "float32")
    after = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    assert after == before
    assert torch.equal(checkpoint.model(ids).logits, logits)
    left = [weakref.ref(checkpoint.model), weakref.ref(dense.model)]
    del checkpoint, dense
    gc.collect()
    assert [each() for each in left] == [None, None]


def test_a_model_that_nobody_uses_is_gone_before_another_one_is_loaded(folders, monkeypatch):
    opened, alive = [], []

    def load(folder, device, dtype):
        alive.append(sum(each() is not None for each in opened))
        checkpoint = load_checkpoint(folder, device, dtype)
        opened.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(runs, "load_checkpoint", load)
    for folder in folders:
        runs.load(folder, "cpu", "float32")
    assert alive == [0, 1, 1, 1, 1]


def test_a_model_is_loaded_once_and_again_when_a_file_of_it_or_of_its_twin_is_another(folders):
    folder = folders[0]
    first = runs.load(folder, "cpu", "float32")
    (folder / "link.json").symlink_to(folder / "gone.json")
    assert runs.load(folder, "cpu", "float32") is first
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    second = runs.load(folder, "cpu", "float32")
    assert second is not first
    assert not second[1].is_twin
    second[1].model.save_pretrained(folder / DENSE_TWIN)
    third = runs.load(folder, "cpu", "float32")
    assert third is not second and third[1].is_twin
    assert runs.load(folder, "cpu", "float32") is third
