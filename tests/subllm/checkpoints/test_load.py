"""Loading checkpoints: what is complete loads as it is, and everything else is refused with a reason."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from analysis import AnalysisError
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm import (
    CheckpointError,
    ConfigurationError,
    DeviceFullError,
    PromptError,
    StructureError,
    SubllmError,
    SubllmForCausalLM,
)
from subllm.checkpoints import confined
from subllm.checkpoints.load import fetch_checkpoint, load_checkpoint

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
_TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


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
        ({"num_attention_heads": 0}, ConfigurationError, "num_attention_heads is 0; it must be 1 or more"),
        ({"num_key_value_heads": 3}, ConfigurationError, "key/value heads 3; the second must divide the first"),
        ({"structure": "TT(T(T)TT)T", "num_hidden_layers": 7}, CheckpointError, r"Missing tensors: model\.layers\.6"),
        (
            {"structure": "TT(T(T))T", "num_hidden_layers": 5},
            CheckpointError,
            r"Tensors without a place in the model: model\.layers\.5",
        ),
        ({"structure": "TT(TTT)T"}, CheckpointError, r"Tensors without a place in the model: model\.bypasses\.1"),
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
    with pytest.raises(CheckpointError, match=r"nested too deeply|not an index of weights"):
        load(copied_checkpoint)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=f"{name} in copy has 1,099,511,627,776 bytes, and at most"):
        load(copied_checkpoint)


def test_missing_parts_are_named(copied_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nowhere")
    (copied_checkpoint / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load(copied_checkpoint)
    (copied_checkpoint / "tokenizer.model").touch()
    with pytest.raises(CheckpointError, match=r"only as tokenizer\.model, .* saves it as tokenizer\.json"):
        load(copied_checkpoint)
    (copied_checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its weights \(model\.safetensors\)"):
        load(copied_checkpoint)
    (copied_checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"its config\.json cannot be read"):
        load(copied_checkpoint)
    (copied_checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(copied_checkpoint)


def test_a_missing_shard_is_named(copied_checkpoint):
    (copied_checkpoint / "model.safetensors").unlink()
    (copied_checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load(copied_checkpoint)


def test_a_dtype_that_models_do_not_run_in_is_refused(tiny_checkpoint):
    for dtype in ("int8", "float64", "device"):
        with pytest.raises(CheckpointError, match=f"in the dtype '{dtype}'; allowed are float32, bfloat16, float16"):
            load_checkpoint(tiny_checkpoint, "cpu", dtype)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(copied_checkpoint):
    tokenizer = load(copied_checkpoint).tokenizer
    words = len(tokenizer)
    larger = json.loads((copied_checkpoint / "tokenizer.json").read_text())
    larger["model"]["vocab"] |= {f"word{number}": words + number for number in range(3)}
    (copied_checkpoint / "tokenizer.json").write_text(json.dumps(larger))
    with pytest.raises(CheckpointError, match=f"has {words + 3} tokens, and the model has embeddings for {words}"):
        load(copied_checkpoint)


def test_a_token_that_was_added_later_is_refused_only_where_a_prompt_has_it(copied_checkpoint):
    """A padding token beyond the embeddings is common, and such a checkpoint works."""
    tokenizer = load(copied_checkpoint).tokenizer
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(copied_checkpoint)
    checkpoint = load(copied_checkpoint)
    assert record_trace(checkpoint, "the cat", RunOptions(new_tokens=2)).num_tokens
    with pytest.raises(PromptError, match=f"token id {checkpoint.model.config.vocab_size}"):
        record_trace(checkpoint, "the cat <pad>", RunOptions(new_tokens=2))


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [("float32", "Choose a smaller dtype, or free memory there"), ("bfloat16", "Free memory there, or choose another")],
)
def test_a_model_that_does_not_fit_says_what_helps(tiny_checkpoint, monkeypatch, dtype, advice):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(SubllmForCausalLM, "from_pretrained", full)
    with pytest.raises(DeviceFullError, match=f"free memory of 'cpu' in {dtype}: CUDA out of memory.*{advice}"):
        load_checkpoint(tiny_checkpoint, "cpu", dtype)


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


def test_what_a_trainer_keeps_beside_weights_is_not_called_weights(copied_checkpoint):
    (copied_checkpoint / "model.safetensors").unlink()
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "training_args.bin"):
        (copied_checkpoint / name).write_text("")
    with pytest.raises(CheckpointError, match=r"lacks its weights \(model\.safetensors\)"):
        load(copied_checkpoint)


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


def test_a_link_that_leads_out_of_the_folder_is_not_followed(copied_checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        whole = copied_checkpoint / name
        kept = whole.rename(tmp_path / name)
        whole.symlink_to(kept)
        with pytest.raises(CheckpointError, match=f"{name} in copy is a link that leads out of the folder") as caught:
            load(copied_checkpoint)
        assert str(tmp_path) not in str(caught.value)
        whole.unlink()
        kept.rename(whole)
    inside = copied_checkpoint / "kept.safetensors"
    (copied_checkpoint / "model.safetensors").rename(inside)
    (copied_checkpoint / "model.safetensors").symlink_to(inside)
    assert load(copied_checkpoint).model


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "anything"])
def test_what_is_no_regular_file_is_never_waited_for(copied_checkpoint, name):
    (copied_checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(copied_checkpoint / name)
    with pytest.raises(CheckpointError, match=rf"{name} in copy is not a regular file|it has no config\.json"):
        load(copied_checkpoint)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/dev/zero", "model.bin", "..\\model.safetensors", "sub/model.safetensors", "", 3]
)
def test_an_index_names_safetensors_files_of_its_folder_only(copied_checkpoint, name):
    (copied_checkpoint / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": name, "lm_head.weight": "model.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="not an index of weights"):
        load(copied_checkpoint)


def test_weights_of_an_index_and_other_weights_beside_them_are_refused(copied_checkpoint):
    shutil.copy(copied_checkpoint / "model.safetensors", copied_checkpoint / "shard.safetensors")
    names = dict.fromkeys(load_file(copied_checkpoint / "model.safetensors"), "shard.safetensors")
    (copied_checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=r"has weights twice: model\.safetensors, and other files"):
        load(copied_checkpoint)
    before = (copied_checkpoint / "model.safetensors").read_bytes()
    (copied_checkpoint / "model.safetensors").unlink()
    assert load(copied_checkpoint).digest
    (copied_checkpoint / "shard.safetensors").write_bytes(before[:-4] + b"\0\0\0\1")
    changed = load(copied_checkpoint).model.state_dict()
    expected = load_file(copied_checkpoint / "shard.safetensors")
    assert all(torch.equal(changed[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10**9}, "another shape"),
        ({"num_hidden_layers": 900, "structure": "T" * 900}, "those of 900 blocks, and the files have"),
        ({"num_hidden_layers": 20_000, "structure": "T" * 20_000}, "at most 1,000 are built"),
        ({"structure": "T" * 200_000}, "at most 10,000 are built"),
        ({"rope_parameters": {**_LINEAR, "partial_rotary_factor": 1e9}}, "correct rope_parameters"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "are quantized"),
        ({"hidden_act": "evil"}, r"its config\.json cannot be read \(KeyError"),
        ({"rms_norm_eps": "x"}, r"its config\.json cannot be read \(Validation error for field 'rms_norm_eps'"),
        ({"pad_token_id": 10**6}, "Padding_idx"),
    ],
)
def test_a_model_that_the_files_do_not_hold_is_refused_before_it_takes_memory(copied_checkpoint, fields, message):
    change_config(copied_checkpoint, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(copied_checkpoint)
    assert len(str(caught.value)) < 2_500


def test_fields_of_other_kinds_of_models_have_no_effect(copied_checkpoint):
    """Labels would take gigabytes; the others name code, weights and kernels from elsewhere."""
    expected = load(copied_checkpoint).model.config.to_dict()
    change_config(
        copied_checkpoint,
        num_labels=10**9,
        auto_map={"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", "evil.T"]},
        transformers_weights="../other.safetensors",
        fusion_config={"patch_embeddings": True},
        _attn_implementation="someone/kernel",
        return_dict=False,
    )
    assert load(copied_checkpoint).model.config.to_dict() == expected


def test_code_of_a_tokenizer_is_neither_run_nor_asked_about(copied_checkpoint, monkeypatch):
    path = copied_checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}))
    (copied_checkpoint / "evil.py").write_text("raise SystemExit('ran code')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    assert type(load(copied_checkpoint).tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [_TWICE] * 40}}, "MB of memory|Error|seconds"),
        ({"pre_tokenizer": {**_SPLIT, "pattern": {"Regex": "("}}}, "its tokenizer cannot be read"),
        ({"pre_tokenizer": {**_SPLIT, "pattern": {"Regex": "^(a|aa)+$"}}}, "retry-limit|took more than"),
    ],
)
def test_a_tokenizer_that_never_ends_or_floods_the_memory_is_refused(copied_checkpoint, part, message, monkeypatch):
    monkeypatch.setattr(confined, "_SECONDS", 1.0)
    path = copied_checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(CheckpointError, match=message):
        load(copied_checkpoint)


def test_a_text_that_takes_an_unusual_tokenizer_too_long_is_refused(copied_checkpoint, monkeypatch):
    path = copied_checkpoint / "tokenizer.json"
    slow = {"pre_tokenizer": {**_SPLIT, "pattern": {"Regex": "^(b|bb)+$"}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | slow))
    tokenizer = load(copied_checkpoint).tokenizer
    assert read_prompt("the cat", tokenizer, 100).text == "the cat"
    monkeypatch.setattr(confined, "_SECONDS", 2.0)
    with pytest.raises(PromptError, match=r"cannot read this text \(.*(retry-limit|took more than)"):
        read_prompt("b" * 60 + "!", tokenizer, 100)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copied_checkpoint, value):
    weights = load_file(copied_checkpoint / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][2, 3] = value
    save_file(weights, copied_checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.up_proj\.weight \(1 tensors in all\)"):
        load(copied_checkpoint)


def test_numbers_that_grow_without_limit_are_said_with_their_block(copied_checkpoint):
    weights = load_file(copied_checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] += 3e38
    save_file(weights, copied_checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AnalysisError, match="stop being finite after block 1 of this checkpoint in float32"):
        record_trace(load(copied_checkpoint), "the cat", RunOptions(new_tokens=0))


def test_weights_with_holes_in_their_file_are_not_believed(copied_checkpoint):
    """A file of few bytes on the disk can claim any size."""
    rows, words = 1 << 34, load(copied_checkpoint).model.config.vocab_size
    change_config(copied_checkpoint, vocab_size=rows)
    header, start = {}, 0
    for name, tensor in load_file(copied_checkpoint / "model.safetensors").items():
        shape = [rows, tensor.shape[1]] if tensor.shape[:1] == (words,) else [*tensor.shape]
        size = torch.Size(shape).numel() * (8 if tensor.dtype == torch.long else 4)
        kind = "I64" if tensor.dtype == torch.long else "F32"
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    content = json.dumps(header).encode()
    with (copied_checkpoint / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + start)
    with pytest.raises(SubllmError, match=r"does not fit into the free memory|not a complete .* unable to mmap"):
        load(copied_checkpoint)
