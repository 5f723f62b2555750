"""A training run does what its configuration says, however it is divided, stopped, killed or starved."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from analysis.training.run import load_snapshots, read_run, routing_history, snapshot_trace
from subllm import DataError, SubllmForCausalLM, TrainingError
from subllm.checkpoints.load import load_checkpoint
from subllm.routing import ROUTERS, Lengths, LevelTokens
from subllm.routing.schedule import LinearSchedule
from subllm.runs.checkpoints import checkpoints, damage, last_checkpoint, step_of
from subllm.runs.folder import read_log
from subllm.runs.routing_snapshot import RoutingSnapshot
from subllm.runs.trainer import fast_attention
from subllm.text.blocks import Blocks
from subllm.text.packed import Packed, pack
from subllm.text.tokenizer import train_tokenizer
from subllm.train.config import TrainConfig
from subllm.train.loop import build_model, train
from tests.conftest import tiny_model
from tests.subllm.runs.jobs import MODEL, SMALL, losses

ROOT = Path(__file__).parents[3]
PATIENCE = 600  # seconds: on a busy machine, a process takes long to begin


def command(data, out, config=SMALL, launcher=("-m",)):
    (out.parent / f"{out.name}.json").write_text(json.dumps(config))
    paths = ["--config", f"{out.parent / out.name}.json", "--data", str(data), "--out", str(out)]
    return [sys.executable, *launcher, "subllm.train", *paths]


def run(arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, **options)


def kill_after_a_checkpoint(data, out):
    process = subprocess.Popen(command(data, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list(out.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)  # the moment to kill at is seen in the files that it writes
    process.kill()
    process.wait()


def test_a_killed_run_goes_on_exactly_where_its_last_checkpoint_was(data, finished, tmp_path):
    out = tmp_path / "killed"
    kill_after_a_checkpoint(data, out)
    for checkpoint in out.glob("checkpoint-*"):
        load_checkpoint(checkpoint, "cpu", "float32")
    train(TrainConfig.of(SMALL), data, out)
    assert losses(out) == pytest.approx(losses(finished), abs=1e-6)
    whole, resumed = (load_checkpoint(folder / "final", "cpu", "float32").model for folder in (finished, out))
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=name)


def test_the_end_of_a_text_learns_an_embedding_though_it_is_the_padding_too(data):
    tokenizer, config = Packed.read(data).tokenizer(), TrainConfig.of(SMALL)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for dense in (False, True):
        model = build_model(replace(config, dense=dense), tokenizer)
        assert model.config.pad_token_id is None
        assert model.get_input_embeddings().weight[tokenizer.eos_token_id].any()
    kept = build_model(replace(config, model=config.model | {"pad_token_id": tokenizer.pad_token_id}), tokenizer)
    assert kept.config.pad_token_id == tokenizer.pad_token_id


def test_a_tokenizer_without_a_padding_token_trains(data, tmp_path):
    tokenizer = Packed.read(data).tokenizer()
    tokenizer.pad_token = None  # as most LLaMAs have it
    packed = pack([data.parent / "text.jsonl"], tokenizer, tmp_path / "packed", held_out=0.1)
    done = run(command(packed.folder, tmp_path / "run", SMALL | {"steps": 4}), timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]
    final = load_checkpoint(tmp_path / "run" / "final", "cpu", "float32")
    assert final.tokenizer.pad_token is None and final.model.config.pad_token_id is None


def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(data, tmp_path):
    out = tmp_path / "stopped"
    slow = SMALL | {"steps": 100_000, "save_every": 100_000, "evaluate_every": 100_000}
    process = subprocess.Popen(
        command(data, out, slow), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not (out / "log.jsonl").exists() or not losses(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "run the same command again" in said.splitlines()[-1]
    step = int(last_checkpoint(out).name.rpartition("-")[2])
    assert step >= max(losses(out)) > 0


def test_two_processes_take_the_same_steps_as_one(data, finished, tmp_path):
    out = tmp_path / "two"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    done = run(command(data, out, launcher=launcher), timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(losses(finished), abs=2e-4)


def test_a_signal_to_one_of_two_processes_stops_both(data, tmp_path):
    out = tmp_path / "two"
    slow = SMALL | {"steps": 100_000, "save_every": 100_000, "evaluate_every": 100_000}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command(data, out, slow, launcher), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not (out / "log.jsonl").exists() or not losses(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    (other,) = (each for each in psutil.Process(process.pid).children() if each.environ().get("RANK") == "1")
    other.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "run the same command again" in said, said
    (checkpoint,) = checkpoints(out)
    assert damage(checkpoint) is None and step_of(checkpoint) >= max(losses(out)) > 0


@pytest.mark.parametrize("attention", [{}, {"attn_implementation": "sdpa"}])
def test_bfloat16_takes_nearly_the_steps_of_float32_with_either_attention(data, finished, tmp_path, attention):
    config = TrainConfig.of(SMALL, precision="bf16", model=MODEL | attention)
    model = build_model(config, load_checkpoint(finished / "final", "cpu", "float32").tokenizer)
    chosen = fast_attention(config.precision, config.length)
    assert model.config._attn_implementation == attention.get("attn_implementation", chosen)
    train(config, data, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), abs=0.02)
    assert fast_attention("float32", config.length) == fast_attention("bf16", 4096) == "sdpa"


@pytest.mark.gpu
def test_a_gpu_takes_nearly_the_steps_of_the_cpu(data, finished, tmp_path):
    done = run(command(data, tmp_path / "cpu"), timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert losses(finished) == pytest.approx(losses(tmp_path / "cpu"), abs=5e-3)


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(data, tmp_path):
    out = tmp_path / "full"
    kill_after_a_checkpoint(data, out)
    before = last_checkpoint(out)
    small = (before / "model.safetensors").stat().st_size // 2  # a file cannot grow further than that
    limits = resource.RLIMIT_FSIZE, (small, small)
    done = run(command(data, out), timeout=PATIENCE, preexec_fn=lambda: resource.setrlimit(*limits))
    assert done.returncode == 1, done.stderr
    assert re.search(rf"error: The disk of .* is full .*{before.name} is whole", done.stderr), done.stderr
    assert last_checkpoint(out) == before and not (out / "partial").exists()
    load_checkpoint(before, "cpu", "float32")


def test_a_model_learns(data, tmp_path):
    config = SMALL | {
        "steps": 300, "learning_rate": 5e-3, "evaluate_every": 300, "save_every": 300, "snapshot_every": 300,
        "log_every": 10, "balancer_steps": 300, "bypass_steps": 300,
    }  # fmt: skip
    train(TrainConfig.of(config), data, tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[300] < 0.6 * found[10]
    (evaluated,) = [e["eval_loss"] for e in read_log(tmp_path / "run" / "log.jsonl") if "eval_loss" in e]
    assert evaluated < 0.6 * found[10]  # by the inference rule


def test_every_level_comes_to_keep_its_nominal_share_of_english(tmp_path):
    texts = [paragraph for paragraph in (ROOT / "LICENSE").read_text().split("\n\n") if len(paragraph) > 80]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packed = pack([tmp_path / "text.jsonl"], train_tokenizer(texts, 300), tmp_path / "packed", held_out=0.25)
    config = SMALL | {
        "steps": 600, "learning_rate": 5e-3, "evaluate_every": 600, "save_every": 600, "snapshot_every": 600,
        "log_every": 10, "balancer_steps": 600, "bypass_steps": 600,
    }  # fmt: skip
    checkpoint = load_checkpoint(train(TrainConfig.of(config), packed.folder, tmp_path / "run"), "cpu", "float32")
    blocks = Blocks(packed, "held_out", 32)
    routing = [
        checkpoint.model(block["input_ids"][None], output_routing=True).routing
        for block in (blocks[number] for number in range(10))
    ]
    for number in range(2):
        kept, reached = (
            sum(int(getattr(rows[number], name).sum()) for rows in routing) for name in ("kept", "reached")
        )
        assert kept / reached == pytest.approx(0.6, abs=0.25)


def test_a_subllm_and_its_llama_begin_with_the_same_weights(finished):
    tokenizer = load_checkpoint(finished / "final", "cpu", "float32").tokenizer
    sparse, dense = (build_model(TrainConfig.of(SMALL, dense=dense), tokenizer) for dense in (False, True))
    assert dense.config.model_type == "llama"
    own = dict(sparse.named_parameters())
    for name, parameter in dense.named_parameters():
        torch.testing.assert_close(own.pop(name), parameter, atol=0, rtol=0)
    assert all("subsamplers" in name or "bypasses" in name for name in own)


@pytest.mark.parametrize(
    "changes", [{"dense": True}, *({"ablation": kind} for kind in ("no-bypass", "stride", "random"))]
)
def test_llamas_and_ablations_are_trained_by_the_same_command(data, finished, tmp_path, changes):
    folder = train(TrainConfig.of(SMALL, steps=2, **changes), data, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert losses(tmp_path / "run")[1] < 2 * losses(finished)[1]
    assert (type(model).__name__ == "LlamaForCausalLM") == bool(changes.get("dense"))
    if changes.get("ablation") == "no-bypass":
        assert all((bypass.scale == 1).all() for bypass in model.model.bypasses)


@pytest.mark.parametrize("predictor", [False, True])
def test_mixture_of_depths_is_trained_by_the_same_command(data, tmp_path, predictor):
    config = SMALL | {"model": MODEL | {"router": "mod", "predictor": predictor, "router_loss": 0.1}}
    done = run(command(data, tmp_path / "run", config))
    assert not done.returncode, done.stderr
    lines = [line for line in read_log(tmp_path / "run/log.jsonl") if "loss" in line]
    assert len(lines) == 8 and all(0 < line["router_loss"] < 20 for line in lines)
    checkpoint = load_checkpoint(tmp_path / "run/final", "cpu", "float32")
    assert checkpoint.model.config.routers == ["mod", "mod"]
    about = read_run(tmp_path / "run")
    assert about.routers == ["mod", "mod"] and about.log["router_loss"].notna().sum() == 8
    (first, *_) = snapshots = load_snapshots(about)
    assert np.isnan(first.bypass_scale).all() and len(snapshots) == 3
    history = routing_history(about, snapshots)
    assert np.isnan(history.scales).all() and not np.isnan(history.scores[-1, 0]).any()


def test_merging_is_trained_by_the_same_command(data, tmp_path):
    config = SMALL | {"model": MODEL | {"router": "stride", "retention_ratio": [0.5, 0.25]}}
    done = run(command(data, tmp_path / "run", config))
    assert not done.returncode, done.stderr
    lines = [line for line in read_log(tmp_path / "run/log.jsonl") if "loss" in line]
    assert len(lines) == 8 and lines[-1]["loss"] < lines[0]["loss"]
    model = load_checkpoint(tmp_path / "run/final", "cpu", "float32").model
    assert model.config.routers == ["stride", "stride"] and all(router.bias.any() for router in model.model.subsamplers)
    about = read_run(tmp_path / "run")
    routing = snapshot_trace(about, load_snapshots(about)[-1], 0).routing
    assert routing.strides.tolist() == [2, 4]
    assert routing.merged.any() and not routing.dropped.any()
    assert (routing.contribution_norm[routing.reached] > 0).all()


def test_a_step_of_mixture_of_depths_does_not_depend_on_how_its_batch_is_divided(data, tmp_path):
    config = SMALL | {"model": MODEL | {"router": "mod", "router_loss": 0.5}, "steps": 3}
    found = []
    for size in (1, 4):
        train(TrainConfig.of(config, micro_batch_size=size), data, tmp_path / str(size))
        found.append([line for line in read_log(tmp_path / str(size) / "log.jsonl") if "loss" in line])
    for name in ("loss", "router_loss"):
        assert [line[name] for line in found[0]] == pytest.approx([line[name] for line in found[1]], rel=1e-3)


def test_what_has_no_bypass_cannot_be_trained_without_it(data, tmp_path):
    config = SMALL | {"model": MODEL | {"router": "mod"}, "ablation": "no-bypass"}
    with pytest.raises(TrainingError, match=r"routers \(mod, mod\) have no bypass"):
        train(TrainConfig.of(config), data, tmp_path / "run")


@pytest.mark.parametrize(("kind", "router"), [("stride", "even"), ("random", "random")])
def test_a_model_trained_without_learned_selection_selects_so_wherever_it_is_loaded(data, tmp_path, kind, router):
    folder = train(TrainConfig.of(SMALL, steps=2, ablation=kind), data, tmp_path / "run")
    ids = torch.arange(5, 45)[None]
    for model in (load_checkpoint(folder, "cpu", "float32").model, AutoModelForCausalLM.from_pretrained(folder).eval()):
        assert model.config.routers == [router, router]
        record = model(ids, output_routing=True).routing[0]
        assert record.scores is None
        expected = ROUTERS[router](model.config, 1).select(
            LevelTokens(torch.zeros(1, 40, 1), torch.arange(40)[None], None, Lengths.even(0, 1)), training=False
        )
        assert torch.equal(record.kept, expected.kept)


def test_snapshots_hold_the_routing_of_the_prompts(finished, tmp_path):
    paths = sorted((finished / "snapshots").glob("*.npz"))
    assert [int(path.stem[5:]) for path in paths] == [0, 4, 8]
    last = RoutingSnapshot.load(paths[-1])
    checkpoint = load_checkpoint(finished / "final", "cpu", "float32")
    for number, prompt in enumerate(SMALL["prompts"]):
        own = slice(last.first[number], last.first[number + 1])
        ids = checkpoint.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert last.token_ids[own].tolist() == ids
        output = checkpoint.model(torch.tensor([ids]), output_routing=True)
        np.testing.assert_allclose(last.scores[0, own], output.routing[0].scores[0].detach(), atol=2e-3)
        assert last.kept[0, own].tolist() == output.routing[0].kept[0].tolist()
    (tmp_path / "step-1.npz").write_bytes(paths[0].read_bytes()[:200])
    with np.load(paths[0]) as content:
        np.savez(tmp_path / "step-2.npz", **dict(content) | {"bypass_scale": np.zeros(0, dtype=np.float16)})
    for name in ("step-1.npz", "step-2.npz"):
        with pytest.raises(DataError, match="not a routing snapshot"):
            RoutingSnapshot.load(tmp_path / name)


def test_a_loss_that_is_not_a_number_ends_the_run(data, tmp_path):
    config = TrainConfig.of(SMALL, learning_rate=1e20, warmup_steps=1, clip=1e30, steps=50, save_every=1)
    with pytest.raises(TrainingError, match=r"at step \d+; (checkpoint-\d+|there is no checkpoint)"):
        train(config, data, tmp_path / "run")
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        model = SubllmForCausalLM.from_pretrained(checkpoint)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_another_run_in_the_same_folder_is_refused(data, finished):
    other = SMALL | {"model": MODEL | {"structure": "T(TTT)T"}}
    with pytest.raises(TrainingError, match=r"holds another run \(it differs in model\)"):
        train(TrainConfig.of(other), data, finished)


def test_a_model_for_another_vocabulary_is_refused(data, tmp_path):
    with pytest.raises(TrainingError, match=r"vocab_size of the model is 77, .* is \d\d\d;"):
        train(TrainConfig.of(SMALL | {"model": MODEL | {"vocab_size": 77}}), data, tmp_path / "run")


def test_mistakes_at_the_command_line_are_one_line(tmp_path):
    done = run(
        [sys.executable, "-m", "subllm.train", "--config", str(tmp_path / "no.json"), "--data", "x", "--out", "y"]
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_transformers_own_trainer_moves_the_schedules_and_resumes_them(tmp_path):
    """Without a callback of ours: the count of steps belongs to the model, and its checkpoints keep it."""
    model = tiny_model("T(T)T", bypass_minimum=[0.9, 0.2], bypass_steps=4, balancer_steps=4)
    for bypass in model.model.bypasses:
        torch.nn.init.constant_(bypass.scale, 0.5)
    rows = torch.randint(1, 97, (32, 16), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in rows]

    def trainer(model, steps):
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            learning_rate=1e-3, save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        return Trainer(model, arguments, train_dataset=examples)

    trainer(model, 3).train()
    (bypass,), (router,) = model.model.bypasses, model.model.subsamplers
    assert int(bypass.minimum.step) == int(router.balancing.step) == 3  # of 6 passes
    resumed = SubllmForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert int(resumed.model.bypasses[0].minimum.step) == 3
    trainer(resumed, 6).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert int(resumed.model.bypasses[0].minimum.step) == 6
    resumed.train()
    resumed.zero_grad()
    torch.nn.init.constant_(resumed.model.bypasses[0].scale, 0.5)
    loss = resumed(rows[:2], labels=rows[:2], use_cache=False).loss
    free = torch.autograd.grad(loss, resumed.model.bypasses[0].scale)[0]
    resumed.model.bypasses[0].minimum.schedule = LinearSchedule(0.9, 0.9, 0)
    torch.manual_seed(0)
    held = torch.autograd.grad(
        resumed(rows[:2], labels=rows[:2], use_cache=False).loss, resumed.model.bypasses[0].scale
    )[0]
    assert (held <= 0).all() and (free > 0).any(), "0.5 is below 0.9, and above the last limit of 0.2"
