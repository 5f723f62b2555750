"""Conversions, run as a user runs them: through the command line, in processes of their own where that matters."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from analysis.training.run import load_snapshots, read_run, routing_history
from subllm import CheckpointError, Closed, Probe, SubllmForCausalLM
from subllm.checkpoints.base import from_llama, load_base
from subllm.checkpoints.load import load_checkpoint
from subllm.convert.__main__ import main
from subllm.convert.distillation import add_adapters
from subllm.convert.learned import merge_learned, save_learned
from subllm.convert.merging import fit_bypasses
from subllm.routing import ROUTERS, Router, Selection
from subllm.runs.folder import read_log
from subllm.text.sources import is_held_out
from tests.subllm.convert.conftest import convert


@pytest.mark.parametrize("routers", [["mod"], ["mod", "subllm"]], ids=str)
def test_llama_command_converts_to_mixture_of_depths(tiny_llama, tmp_path, routers):
    out = tmp_path / "out"
    done = convert(
        "llama", "--model", tiny_llama / "llama", "--structure", "T(T)(T)T", "--retention", 0.6, "--router", *routers,
        "--text", tiny_llama / "text.jsonl", "--out", out, "--steps", 12, "--length", 48, "--held-out-blocks", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = SubllmForCausalLM.from_pretrained(out).eval()
    assert model.config.routers == (routers * 2)[:2] and model.config.router_weight == "unit"
    line = json.loads((out / "training/log.jsonl").read_text().splitlines()[-1])
    assert all(abs(line[f"eval_retention_{level}"] - 0.6) < 0.12 for level in (1, 2))
    card = (out / "README.md").read_text()
    assert f"| router | {', '.join(routers)} |" in card
    record = model(torch.arange(40)[None] % model.config.vocab_size, output_routing=True).routing[0]
    assert torch.equal(record.weights, record.kept.float()) and record.kept.any()
    base, _ = load_base(str(tiny_llama / "llama"))
    merged = merge_learned(base, out / "learned")
    assert merged.config.routers == model.config.routers
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), atol=2e-2, rtol=2e-2)


def test_llama_command_converts_to_light_and_heavy_blocks(tiny_llama, tmp_path):
    out = tmp_path / "out"
    done = convert(
        "llama", "--model", tiny_llama / "llama", "--structure", "TC(T)T", "--retention", 0.6, "--window", 8,
        "--light-heads", 2, "--light-units", 20, "--routed", 0.5, 0.6, 0.4, "--text", tiny_llama / "text.jsonl",
        "--out", out, "--steps", 12, "--length", 48, "--held-out-blocks", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = SubllmForCausalLM.from_pretrained(out).eval()
    config = model.config
    assert (config.window, config.light_heads, config.light_intermediate_size) == (8, 2, 20)
    line = json.loads((out / "training/log.jsonl").read_text().splitlines()[-1])
    for level, share in enumerate((0.5, 0.6, 0.4, 0.6), start=1):
        assert abs(line[f"eval_retention_{level}"] - share) < 0.15
    run = read_run(out / "training")
    work = routing_history(run, load_snapshots(run)).work  # with the sizes of the model, not those of a usual LLaMA
    assert run.model.light_intermediate_size == 20 and (work > 0.5).all() and (work < 1).all()
    routing = model(torch.arange(40)[None] % config.vocab_size, output_routing=True).routing
    assert all(record.kept.any() for record in routing) and (routing[0].weights == routing[0].kept).all()
    base, _ = load_base(str(tiny_llama / "llama"))
    for name, tensor in merge_learned(base, out / "learned").state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("routers", "shares"), [(["stride"], [0.5]), (["subllm", "stride"], [0.6, 0.25])], ids=str)
def test_llama_command_converts_to_merging(tiny_llama, tmp_path, routers, shares):
    out = tmp_path / "out"
    done = convert(
        "llama", "--model", tiny_llama / "llama", "--structure", "T(T(T))T", "--retention", *shares,
        "--router", *routers, "--text", tiny_llama / "text.jsonl", "--out", out, "--steps", 8, "--length", 48,
        "--held-out-blocks", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = SubllmForCausalLM.from_pretrained(out).eval()
    assert model.config.routers == (routers * 2)[:2]
    line = json.loads((out / "training/log.jsonl").read_text().splitlines()[-1])
    assert all(abs(line[f"eval_retention_{level}"] - share) < 0.12 for level, share in enumerate((shares * 2)[:2], 1))
    assert "weights of merged tokens |" in (out / "README.md").read_text()
    assert model.model.subsamplers[1].bias.any() and model.model.bypasses[1].scale.clamp(0, 1).equal(
        model.model.bypasses[1].scale
    )
    base, _ = load_base(str(tiny_llama / "llama"))
    merged = merge_learned(base, out / "learned")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("structure", ["T(TT)T", "T(T(T))T"])
@torch.no_grad()
def test_scales_of_merging_levels_begin_where_the_model_is_closest_to_its_base(tiny_llama, structure):
    base, _ = load_base(str(tiny_llama / "llama"), torch.float32)
    model = from_llama(base, structure, 0.5, router="stride")
    batches = list(torch.randint(3, 18, (3, 4, 40), generator=torch.Generator().manual_seed(0)))
    fit_bypasses(model, batches)

    def distance(scales):
        for bypass, scale in zip(model.model.bypasses, scales, strict=True):
            bypass.scale.copy_(scale)
        return sum(
            (model.model(ids).last_hidden_state - base.model(ids).last_hidden_state).square().sum() for ids in batches
        )

    fitted = [bypass.scale.clone() for bypass in model.model.bypasses]
    assert all(((scale >= 0) & (scale <= 1)).all() and scale.std() > 0.01 for scale in fitted)
    found = distance(fitted)
    assert all(found < distance([torch.full_like(scale, value) for scale in fitted]) for value in (0.0, 0.25, 0.5, 1.0))


@torch.no_grad()
def test_scales_of_an_outer_level_are_fitted_to_what_the_blocks_of_the_base_change(tiny_llama):
    """And not to what the level inside makes of it after its own fit."""
    base, _ = load_base(str(tiny_llama / "llama"), torch.float32)
    model = from_llama(base, "T(T(T))T", 0.5, router="stride")
    ids = torch.randint(3, 18, (4, 40), generator=torch.Generator().manual_seed(0))
    fit_bypasses(model, [ids])
    outer = model.model.bypasses[0].scale
    fitted, changes = outer.clone(), []
    outer.fill_(1)

    def observe(event):
        if isinstance(event, Closed) and event.level == 1:
            changes.append(event.after.hidden_states - event.before.hidden_states)

    model.model(ids, use_cache=False, probe=Probe(observe=observe))
    states = base.model(ids, output_hidden_states=True).hidden_states
    whole, (merged,) = states[3] - states[1], changes
    expected = (whole * merged).sum((0, 1)) / merged.square().sum((0, 1))
    torch.testing.assert_close(fitted, expected.clamp(0.05, 1), atol=1e-3, rtol=1e-3)


def test_llama_command_converts_resumes_and_reports(tiny_llama):
    out = tiny_llama / "out"
    arguments = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--retention", 0.64,
        "--text", tiny_llama / "text.jsonl", "--out", out, "--steps", 30, "--length", 48, "--held-out-blocks", 4,
    ]  # fmt: skip
    done = convert(*arguments)
    assert done.returncode == 0, done.stderr
    model = SubllmForCausalLM.from_pretrained(out).eval()
    assert model.config.structure == "T(TT)T"
    card = (out / "README.md").read_text()
    assert "perplexity" in card
    last = json.loads((out / "training" / "log.jsonl").read_text().splitlines()[-1])
    assert abs(last["eval_retention_1"] - 0.64) < 0.08
    assert f"| 30 | {30 * 2 * 48:,} |" in card  # step, tokens trained on
    run = read_run(out / "training")
    assert run.step == 30 and run.config["converted"] and len(run.log["loss"].dropna()) == 30
    assert [snapshot.step for snapshot in load_snapshots(run)] == [0, 30]
    command = next(line for line in card.splitlines() if line.startswith("subllm convert llama "))
    assert shlex.split(command)[2:] == [str(argument) for argument in arguments]
    metadata = ModelCard(card).data  # as the hub reads it
    assert (metadata.library_name, metadata.pipeline_tag, metadata.base_model) == (
        "transformers", "text-generation", None,  # the base is a folder of this machine
    )  # fmt: skip
    again = convert(*arguments)  # the run is complete: nothing is trained twice, the same checkpoint is written
    assert again.returncode == 0, again.stderr
    reloaded = SubllmForCausalLM.from_pretrained(out)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], tensor)
    assert (out / "README.md").read_text() == card
    base, _ = load_base(str(tiny_llama / "llama"))
    merged = merge_learned(base, out / "learned")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), atol=2e-2, rtol=2e-2)
    assert str(tiny_llama) not in (out / "learned" / "adapter_config.json").read_text()


def test_a_run_stopped_half_way_ends_as_if_it_had_not_been(tiny_llama):
    common = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T",
        "--text", tiny_llama / "text.jsonl", "--steps", 120, "--length", 48, "--held-out-blocks", 4,
    ]  # fmt: skip
    whole, stopped = tiny_llama / "whole", tiny_llama / "stopped"
    assert convert(*common, "--out", whole).returncode == 0
    command = [sys.executable, "-m", "subllm.convert", *map(str, [*common, "--out", stopped])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = stopped / "training" / "log.jsonl"
    while process.poll() is None and not log.exists():
        time.sleep(0.02)  # the moment to stop at is seen in the files that it writes
    process.terminate()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert not (stopped / "model.safetensors").exists()
    assert convert(*common, "--out", stopped).returncode == 0
    expected = SubllmForCausalLM.from_pretrained(whole).state_dict()
    for name, tensor in SubllmForCausalLM.from_pretrained(stopped).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-3)


def test_two_processes_convert_as_one(tiny_llama):
    common = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T",
        "--text", tiny_llama / "text.jsonl", "--steps", 6, "--length", 48, "--held-out-blocks", 4,
        "--precision", "float32",  # rounding to bfloat16 depends on how a batch is divided
    ]  # fmt: skip
    alone, together = tiny_llama / "alone", tiny_llama / "together"
    assert convert(*common, "--out", alone).returncode == 0
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "subllm.convert"]
    command = [sys.executable, "-m", *launcher, *map(str, [*common, "--out", together])]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs = [list(read_log(out / "training" / "log.jsonl")) for out in (alone, together)]
    for name in ("loss", "retention_1", "eval_loss"):
        one, two = ([entry[name] for entry in log if name in entry] for log in logs)
        assert one and one == pytest.approx(two, abs=5e-3)


def test_another_conversion_in_the_same_folder_is_refused(tiny_llama):
    common = [
        "llama", "--model", tiny_llama / "llama", "--text", tiny_llama / "text.jsonl",
        "--length", 48, "--held-out-blocks", 4, "--out", tiny_llama / "out",
    ]  # fmt: skip
    other = shutil.copytree(tiny_llama / "llama", tiny_llama / "other")
    weights = load_file(other / "model.safetensors")
    save_file(weights | {"model.norm.weight": 2 * weights["model.norm.weight"]}, other / "model.safetensors")
    assert convert(*common, "--structure", "T(TT)T", "--steps", 4).returncode == 0
    run = json.loads((tiny_llama / "out/training/run.json").read_text())
    older = {name: value for name, value in run.items() if name not in ("base", "routers", "window")}
    (tiny_llama / "out/training/run.json").write_text(json.dumps(older))
    assert convert(*common, "--structure", "T(TT)T", "--steps", 4).returncode == 0
    assert json.loads((tiny_llama / "out/training/run.json").read_text()) == run
    for changed, said in [
        (["--structure", "TT(T)T", "--steps", 4], "differs in its structure"),
        (["--structure", "T(TT)T", "--steps", 4, "--rank", 8], "differs in rank"),
        (["--structure", "T(TT)T", "--steps", 4, "--router", "mod"], "differs in its routers"),
        (["--structure", "T(TT)T", "--steps", 4, "--model", other], "differs in its base"),
        (["--structure", "T(TT)T", "--steps", 2], "has gone 4 steps, more than the 2 asked for"),
    ]:
        done = convert(*common, *changed)
        assert done.returncode == 1 and said in done.stderr, done.stderr
    longer = convert(*common, "--structure", "T(TT)T", "--steps", 6)
    assert longer.returncode == 0, longer.stderr
    assert [entry["step"] for entry in read_log(tiny_llama / "out" / "training" / "log.jsonl") if "loss" in entry] == [
        1, 2, 3, 4, 5, 6,
    ]  # fmt: skip


def test_a_conversion_with_other_light_and_heavy_blocks_is_refused(tiny_llama):
    common = [
        "llama", "--model", tiny_llama / "llama", "--text", tiny_llama / "text.jsonl", "--structure", "TCTT",
        "--length", 48, "--held-out-blocks", 4, "--out", tiny_llama / "out", "--steps", 2,
    ]  # fmt: skip
    assert convert(*common, "--window", 8).returncode == 0
    for changed, said in [
        (["--window", 16], "differs in its window)"),
        (["--window", 8, "--light-heads", 2], "differs in its light_heads)"),
        (
            ["--out", tiny_llama / "next", "--from", tiny_llama / "out" / "learned", "--light-units", 20],
            "learned with light_intermediate_size 7, and this conversion has 20; give the same one.",
        ),
    ]:
        done = convert(*common, *changed)
        assert done.returncode == 1 and said in done.stderr, done.stderr


def test_a_conversion_goes_on_from_what_another_learned(tiny_llama):
    common = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl",
        "--held-out-blocks", 4, "--start-retention", 0.64,
    ]  # fmt: skip
    first, second = tiny_llama / "first", tiny_llama / "second"
    assert convert(*common, "--steps", 8, "--length", 48, "--out", first).returncode == 0
    onward = [*common, "--from", first / "learned", "--steps", 1, "--length", 96, "--out", second]
    done = convert(*onward, "--learning-rate", 1e-9)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "learned" / "adapter_model.safetensors") for folder in (first, second))
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in before.items())
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    for changed, said in [
        (["--rank", 4], "have rank 16, and this conversion's rank 4"),
        (["--inner-rank", 32], "have rank 16, and this conversion's rank 16, inside levels 32"),
        (["--structure", "TT(T)T"], "learned for the structure T(TT)T"),
        (["--from", tiny_llama / "llama"], "is not what a conversion learned"),
        (["--from", second / "learned"], "differs in its start"),
    ]:
        done = convert(*onward, "--learning-rate", 1e-9, *changed)
        assert done.returncode == 1 and said in done.stderr, done.stderr


def test_chats_are_written_in_the_models_template(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama / "llama")
    tokenizer.chat_template = "cat {{ messages[0]['content'] }} dog"
    tokenizer.save_pretrained(tiny_llama / "llama")
    (tiny_llama / "topics.jsonl").write_text(json.dumps({"text": "The old tree is under the mat."}) + "\n")
    out = tiny_llama / "chats.jsonl"
    arguments = ["chats", "--model", tiny_llama / "llama", "--topics", tiny_llama / "topics.jsonl", "--out", out,
                 "--count", 3, "--new-tokens", 5, "--batch-size", 2]  # fmt: skip
    done = convert(*arguments)
    assert done.returncode == 0, done.stderr
    chats = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(chats) == 3
    assert all(chat.startswith("cat ") and "The old tree" in chat and "<eos>" in chat for chat in chats)
    assert convert(*arguments).returncode == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 6 and not {*lines[:3]} & {*lines[3:]}, "chats that are there are not written again"
    assert convert(*arguments, "--out", tiny_llama / "again.jsonl").returncode == 0
    assert (tiny_llama / "again.jsonl").read_text().splitlines() == lines[:3]
    (tiny_llama / "topics.jsonl").write_text(json.dumps({"text": "Nothing to see."}) + "\n")
    assert "error: No document begins with" in convert(*arguments).stderr


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}", "OverflowError|seconds"),
        ("{{ messages[0]['content'] * 10000 }}", "20,000 are allowed"),
        ("{{ raise_exception('only tools') }}", "only tools"),
    ],
    ids=["endless", "long", "refusing"],
)
def test_a_chat_template_that_does_harm_is_stopped(tiny_llama, template, said):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama / "llama")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tiny_llama / "llama")
    (tiny_llama / "topics.jsonl").write_text(json.dumps({"text": "The old tree is under the mat."}) + "\n")
    done = convert("chats", "--model", tiny_llama / "llama", "--topics", tiny_llama / "topics.jsonl",
                   "--out", tiny_llama / "chats.jsonl", "--count", 1, "--new-tokens", 5)  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: The chat template"), done.stderr
    assert re.search(said, done.stderr) and not (tiny_llama / "chats.jsonl").exists()


def test_text_that_repeats_itself_is_written_from_documents_that_are_not_held_out(tmp_path):
    documents = [f"Place {number} is a place with {number} trees and a mat." for number in range(60)]
    text, out = tmp_path / "text.jsonl", tmp_path / "repeats"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    arguments = ["repeats", "--text", text, "--topics", text, "--count", 8]
    done = convert(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    written = {file.name: file.read_text() for file in out.iterdir()}
    assert {name: found.count("\n") for name, found in written.items()} == {
        "passages-1.jsonl": 8, "passages-2.jsonl": 8, "numbers.jsonl": 8,
    }  # fmt: skip
    held_out = [document for document in documents if is_held_out(document)]
    assert held_out and not any(document in found for document in held_out for found in written.values())
    topics = [document.partition(" is ")[0] for document in held_out]
    assert not any(re.search(rf"\b{topic}\b", written["numbers.jsonl"]) for topic in topics)
    assert convert(*arguments, "--out", tmp_path / "again").returncode == 0
    assert written == {file.name: file.read_text() for file in (tmp_path / "again").iterdir()}
    assert convert(*arguments, "--out", tmp_path / "near", "--distance", 401).returncode == 0
    near = {file.name: file.read_text() for file in (tmp_path / "near").iterdir()}
    assert len(near["numbers.jsonl"]) < len(written["numbers.jsonl"])
    for distance in (400, 8001):
        done = convert(*arguments, "--out", tmp_path / "none", "--distance", distance)
        assert done.returncode == 1 and "more than 400 and at most 8,000" in done.stderr, done.stderr
    text.write_text(json.dumps({"text": documents[0]}) + "\n")
    done = convert(*arguments, "--out", tmp_path / "none")
    assert done.returncode == 1 and "at least 1 and 24 are needed" in done.stderr, done.stderr
    assert not (tmp_path / "none").exists()


def test_a_model_whose_tokenizer_has_no_padding_is_converted_and_writes_chats(tiny_llama):
    path = tiny_llama / "llama" / "tokenizer_config.json"
    tokenizer, config = json.loads(path.read_text()), tiny_llama / "llama" / "config.json"
    template = {"chat_template": "cat {{ messages[0]['content'] }} dog"}
    path.write_text(json.dumps({key: value for key, value in tokenizer.items() if key != "pad_token"} | template))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": None}))
    assert AutoTokenizer.from_pretrained(tiny_llama / "llama").pad_token is None
    out = tiny_llama / "out"
    done = convert(
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl",
        "--out", out, "--steps", 2, "--length", 48, "--held-out-blocks", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(out, "cpu", "float32").tokenizer.pad_token is None
    topics = [{"text": "The tree is under the mat."}, {"text": "The very happy cat under the old tree was sad."}]
    (tiny_llama / "topics.jsonl").write_text("".join(json.dumps(topic) + "\n" for topic in topics))
    done = convert(
        "chats", "--model", tiny_llama / "llama", "--topics", tiny_llama / "topics.jsonl",
        "--out", tiny_llama / "chats.jsonl", "--count", 8, "--new-tokens", 5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chats = [json.loads(line)["text"] for line in (tiny_llama / "chats.jsonl").read_text().splitlines()]
    assert len(chats) == 8 and all(chat.endswith("<eos>\n") and "<pad>" not in chat for chat in chats)
    path.write_text(json.dumps({key: value for key, value in tokenizer.items() if key != "eos_token"} | template))
    for arguments in (
        ["chats", "--topics", tiny_llama / "topics.jsonl", "--out", tiny_llama / "more.jsonl"],
        ["llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl", "--out", tiny_llama / "other"],
    ):
        done = convert(*arguments, "--model", tiny_llama / "llama")
        assert done.returncode == 1 and "has no end-of-text token" in done.stderr.splitlines()[-1], done.stderr


@torch.no_grad()
def test_a_router_of_ones_own_begins_with_zeros_in_a_conversion(tiny_llama, monkeypatch):
    class Gated(Router):
        scores_tokens = False

        def __init__(self, config, level):
            super().__init__(config, level)
            self.gate = torch.nn.Parameter(torch.ones(config.hidden_size))

        def select(self, tokens, training):
            return Selection.of(
                tokens,
                torch.ones_like(tokens.indices, dtype=torch.bool).expand_as(tokens.positions),
                self.weigh(tokens),
            )

        def weigh(self, tokens, threshold=None):
            return torch.ones(tokens.positions.shape)

    monkeypatch.setitem(ROUTERS, "modulo", Gated)
    dense, _ = load_base(str(tiny_llama / "llama"), torch.float32)
    model = from_llama(dense, "T(TT)T", 0.64, router="modulo")
    assert model.config.router_weight == "score" and not model.model.subsamplers[0].gate.any()
    ids = torch.randint(3, 18, (1, 9))
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_base_that_lacks_weights_and_learned_files_that_lack_some_are_refused(tiny_llama):
    base = tiny_llama / "llama"
    weights = load_file(base / "model.safetensors")
    dense, _ = load_base(str(base))
    model = from_llama(dense, "T(TT)T", 0.64)
    save_learned(add_adapters(model, 2), model, tiny_llama / "learned")
    routing = load_file(tiny_llama / "learned" / "routing.safetensors")
    save_file({"model.bypasses.0.scale": routing["model.bypasses.0.scale"]}, tiny_llama / "learned/routing.safetensors")
    with pytest.raises(CheckpointError, match=r"other tensors .* \(model.subsamplers.0.weight\)"):
        merge_learned(load_base(str(base))[0], tiny_llama / "learned")
    for name, tensor, said in [
        ("model.layers.2.mlp.up_proj.weight", None, "Missing tensors: model.layers.2.mlp.up_proj.weight"),
        ("model.norm.weight", torch.ones(8), "another shape: model.norm.weight"),
    ]:
        changed = {key: value for key, value in (weights | {name: tensor}).items() if value is not None}
        save_file(changed, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=said):
            load_base(str(base))


def test_mistakes_are_one_line_and_a_non_zero_exit(tiny_llama):
    for extra, message in [
        (["--model", tiny_llama / "nowhere", "--structure", "T(TT)T"], "nowhere"),
        (["--model", tiny_llama / "llama", "--structure", "T(T)T"], "is 3, but num_hidden_layers is 4"),
        (["--model", tiny_llama / "llama", "--structure", "T(TT"], "never closed"),
    ]:
        done = convert("llama", *extra, "--text", tiny_llama / "text.jsonl", "--out", tiny_llama / "out")
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
        assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama", "--structure", "TTTT"], "error: The structure 'TTTT' drops no token"),
        (["llama", "--structure", "T(TT)T", "--rank", 0], "argument --rank: it is '0'"),
        (["llama", "--structure", "T(TT)T", "--length", 1], "error: length is 1; it must be 2 or more"),
        (["llama", "--structure", "T(TT)T", "--inner-rank", -1], "error: inner_rank is -1"),
        (["llama", "--structure", "T(TT)T", "--start-retention", 1.5], "error: start_retention is 1.5"),
        (["llama", "--structure", "T(TT)T", "--seed", -1], "error: seed is -1"),
        (["llama", "--structure", "T(TT)T", "--held-out-blocks", 0], "argument --held-out-blocks: it is '0'; give"),
        (["chats", "--topics", "x", "--batch-size", 0], "argument --batch-size: it is '0'"),
        (["chats", "--topics", "x", "--new-tokens", "many"], "argument --new-tokens: it is 'many'"),
        (["repeats", "--topics", "x", "--text", "x", "--count", -1], "argument --count: it is '-1'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_said_before_anything_is_read(tmp_path, capsys, arguments, said):
    more = {"llama": ["--model", "x", "--text", "x"], "chats": ["--model", "x"], "repeats": []}[arguments[0]]
    with contextlib.redirect_stderr(io.StringIO()) as complained, contextlib.suppress(SystemExit):
        assert main([*map(str, arguments), *more, "--out", str(tmp_path / "out")]) == 1
    assert said in complained.getvalue().splitlines()[-1]
