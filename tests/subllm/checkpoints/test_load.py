"""Loading checkpoints: what is complete loads as it is, and everything else is refused with a reason."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from subllm import CheckpointError, ConfigurationError, StructureError, SubllmForCausalLM
from subllm.checkpoints.load import fetch_checkpoint, load_checkpoint


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def load(folder):
    return load_checkpoint(folder, "cpu", "float32")


def test_a_complete_folder_loads_with_the_weights_that_were_saved(tiny_checkpoint):
    checkpoint = load(tiny_checkpoint)
    expected = SubllmForCausalLM.from_pretrained(tiny_checkpoint).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.model.state_dict().items())
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer("the cat")["input_ids"]) == "the cat"
    assert not checkpoint.model.training


def test_the_digest_changes_with_weights_and_configuration_only(copied_checkpoint):
    before = load(copied_checkpoint).digest
    (copied_checkpoint / "README.md").write_text("a card")
    assert load(copied_checkpoint).digest == before
    weights = load_file(copied_checkpoint / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copied_checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert load(copied_checkpoint).digest != before


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"structure": None}, ConfigurationError, "no 'structure'"),
        ({"structure": None, "model_type": "llama"}, CheckpointError, "'llama' model, not a 'subllm'"),
        ({"structure": "TT(T(T)TT"}, StructureError, "never closed"),
        ({"structure": "TT(T(T)T))T"}, StructureError, "never opened"),
        ({"structure": "TT(T)T"}, ConfigurationError, "is 4, but num_hidden_layers is 6"),
        ({"retention_ratio": 1.5}, ConfigurationError, r"1\.5; every value must lie in \(0, 1\]"),
        ({"retention_ratio": 0}, ConfigurationError, r"\(0, 1\]"),
        ({"hidden_size": 64}, CheckpointError, "another shape"),
        ({"structure": "TT(T(T)TT)T", "num_hidden_layers": 7}, CheckpointError, r"Missing tensors: model\.layers\.6"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copied_checkpoint, fields, error, message):
    change_config(copied_checkpoint, **fields)
    with pytest.raises(error, match=message):
        load(copied_checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_nested_too_deeply_or_far_too_large_is_refused(copied_checkpoint, name):
    path = copied_checkpoint / name
    path.write_text("[" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"nested too deeply|not a readable index"):
        load(copied_checkpoint)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"67,108,864 are allowed|not a readable index"):
        load(copied_checkpoint)


def test_missing_parts_are_named(copied_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")
    (copied_checkpoint / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load(copied_checkpoint)
    (copied_checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its weights \(model\.safetensors\)"):
        load(copied_checkpoint)
    (copied_checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load(copied_checkpoint)
    (copied_checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(copied_checkpoint)


def test_a_missing_shard_is_named(copied_checkpoint):
    (copied_checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load(copied_checkpoint)


def test_truncated_weights_are_refused(copied_checkpoint):
    file = copied_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load(copied_checkpoint)


def test_a_pickle_is_never_opened(copied_checkpoint, capfd):
    class Evil:
        def __reduce__(self):
            return print, ("ran code",)

    (copied_checkpoint / "model.safetensors").unlink()
    (copied_checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, but pickled weights can run code"):
        load(copied_checkpoint)
    assert "ran code" not in capfd.readouterr().out


def test_hub_names_come_from_the_hubs_cache_and_are_refused_otherwise(tiny_checkpoint, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_checkpoint)
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(fetch_checkpoint("someone/tiny")).model.config.structure == "TT(T(T)T)T"
    with pytest.raises(CheckpointError, match="not in the hub's cache"):
        fetch_checkpoint("someone/unknown")
    with pytest.raises(CheckpointError, match="not a hub name"):
        fetch_checkpoint("no/such/name")


def test_pipeline_and_auto_classes_work_in_a_fresh_process(tiny_checkpoint):
    script = f"""
import subllm, torch
from transformers import AutoModelForCausalLM, pipeline
model = AutoModelForCausalLM.from_pretrained({str(tiny_checkpoint)!r})
assert type(model) is subllm.SubllmForCausalLM
write = pipeline("text-generation", model={str(tiny_checkpoint)!r}, device="cpu")
said = write("the cat", max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
ids = write.tokenizer("the cat", return_tensors="pt")["input_ids"]
expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1]:]
assert said == write.tokenizer.decode(expected, skip_special_tokens=True), (said, expected)
assert said
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
