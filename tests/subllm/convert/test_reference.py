"""Checkpoints in the reference format become ours, or are refused with a reason."""

import json
import pickle
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from subllm import CheckpointError, ConfigurationError, SubllmForCausalLM
from subllm.convert.reference import from_reference, load_weights
from tests.conftest import GOLDEN
from tests.subllm.convert.conftest import convert


@pytest.fixture
def reference_files(golden, tmp_path):
    case, tensors = golden
    config, weights = tmp_path / "C.json", tmp_path / "W.safetensors"
    config.write_text(json.dumps(case["config"]))
    save_file({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}, weights)
    return config, weights


@pytest.mark.parametrize("golden", ["nested"], indirect=True)
def test_reference_command_writes_a_checkpoint_that_loads_in_a_fresh_process(reference_files, golden, tmp_path):
    config, weights = reference_files
    out = tmp_path / "out"
    done = convert("reference", "--config", config, "--weights", weights, "--out", out)
    assert done.returncode == 0, done.stderr
    ids = golden[1]["input_ids"][0, :8].tolist()
    script = f"""
import subllm, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(out)!r})
assert type(model).__name__ == "SubllmForCausalLM"
print(model.generate(torch.tensor([{ids}]), max_new_tokens=4, do_sample=False).tolist())
"""
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    expected = SubllmForCausalLM.from_pretrained(out).generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    assert json.loads(fresh.stdout) == expected.tolist()


def test_reference_weights_that_do_not_fit_are_named():
    config = json.loads((GOLDEN / "one_level.json").read_text())["config"]
    with pytest.raises(CheckpointError, match=r"missing .*embed_tokens"):
        from_reference(config, {})
    with pytest.raises(ConfigurationError, match="structure"):
        from_reference({k: v for k, v in config.items() if k != "structure"}, {})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda config: [config], "of type list; it must be a JSON object"),
        (lambda config: config | {"structure": ["T"]}, r"is \['T'\]; it must be a string"),
        (lambda config: config | {"structure": 5}, "is 5; it must be a string"),
        (lambda config: config | {"decoder_embed_dim": "32"}, "'hidden_size' expected int, got str"),
    ],
)
def test_a_configuration_of_another_form_is_said_in_one_line(tmp_path, changed, said):
    config = changed(json.loads((GOLDEN / "one_level.json").read_text())["config"])
    (tmp_path / "C.json").write_text(json.dumps(config))
    save_file({"a": torch.ones(1)}, tmp_path / "W.safetensors")
    done = convert(
        "reference", "--config", tmp_path / "C.json", "--weights", tmp_path / "W.safetensors", "--out", tmp_path / "out"
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and re.search(said, done.stderr), done.stderr


def test_unsafe_and_damaged_weights_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran code",)

    bad = tmp_path / "bad.pt"
    bad.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="never loaded"):
        load_weights(bad)
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes((GOLDEN / "dense.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_weights(truncated)
    with pytest.raises(CheckpointError, match="no weights file"):
        load_weights(tmp_path / "missing.pt")
