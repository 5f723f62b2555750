"""Evaluations agree with what they are made of, and the public harness runs on our checkpoints."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from analysis import AnalysisError
from analysis.commands.evaluate import main
from analysis.quality.evaluate import at_retention, held_out_blocks, needle_prompt, needles, run_tasks
from subllm.checkpoints.dense import load_dense, routing_off
from subllm.checkpoints.load import load_checkpoint
from subllm.convert.fidelity import measure_fidelity
from subllm.routing import ROUTERS
from subllm.text.packed import pack
from tests.conftest import run_command, tiny_model

ROOT = Path(__file__).parents[3]
TASKS = Path(__file__).parent / "tasks"


@pytest.fixture
def loaded(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    return checkpoint, load_dense(checkpoint)


def test_a_needle_is_where_it_is_said_to_be(loaded):
    checkpoint, _ = loaded
    filler = [1] * 300  # a token that no needle has
    for depth in (0.0, 0.25, 0.5, 1.0):
        ids, answer, place = needle_prompt(checkpoint, filler, 220, depth, random.Random(1))
        assert [ids[index] for index in place] == answer
        assert len(ids) + len(answer) == 220
        text = checkpoint.tokenizer.decode(ids)
        assert text.count("secret number of the") == 2
        assert ids[: place.start].count(1) == pytest.approx(depth * ids.count(1), abs=0.5)


def test_a_model_that_keeps_nothing_keeps_no_needle(loaded):
    checkpoint, dense = loaded
    for subsampler in checkpoint.model.model.subsamplers:
        subsampler.weight.data.zero_()
    found = needles(checkpoint, dense, 250, [0.5], trials=2)[0]
    assert found.kept == [0.0] * len(found.kept)
    with pytest.raises(AnalysisError, match="does not fit"):
        needles(checkpoint, dense, 20, [0.5], trials=1)
    with pytest.raises(AnalysisError, match="shares from 0 to 1"):
        needles(checkpoint, dense, 250, [5.0])


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_can_be_evaluated_at_a_share_of_tokens(router):
    model = tiny_model("T(T(T)T)T", router=router, retention_ratio=0.25)
    blocks = torch.randint(1, 97, (4, 64), generator=torch.Generator().manual_seed(0))
    override = at_retention(model, blocks, 0.5)
    own, moved = (measure_fidelity(model, routing_off(model), blocks, each) for each in (None, override))
    if router == "subllm":
        assert moved.retention == pytest.approx([0.5, 0.5], abs=0.02)
    else:
        assert moved == own, "it decides as ever"
    assert moved.divergence > 0
    assert at_retention(model, blocks, 0.0) is None
    with pytest.raises(AnalysisError, match=r"A retention of 1\.5 cannot be evaluated"):
        at_retention(model, blocks, 1.5)


def test_held_out_text_comes_from_packed_folders_and_from_files(loaded, tmp_path):
    checkpoint, _ = loaded
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} cats sat on {n} mats"}) + "\n" for n in range(200))
    )
    blocks = held_out_blocks(checkpoint, [tmp_path / "text.jsonl"], 16, 4)
    assert blocks.shape == (4, 16)
    packed = pack([tmp_path / "text.jsonl"], checkpoint.tokenizer, tmp_path / "packed", held_out=0.3)
    assert held_out_blocks(checkpoint, [packed.folder], 16, 3).shape == (3, 16)
    with pytest.raises(AnalysisError, match="less than one block"):
        held_out_blocks(checkpoint, [tmp_path / "text.jsonl"], 10**6, 1)


def test_the_command_reports_what_the_model_computes(tiny_checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog saw it " * 20)
    command = ["--checkpoint", str(tiny_checkpoint)]
    out = tmp_path / "found.json"
    done = run_command(main, *command, "--data", str(tmp_path / "text.txt"), "--lengths", "32", "--blocks", "2",
         "--retentions", "0", "0.5", "1", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, half, everything = json.loads(out.read_text())["perplexity"]
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    blocks = held_out_blocks(checkpoint, [tmp_path / "text.txt"], 32, 2)
    with torch.no_grad():
        expected = checkpoint.model(blocks, labels=blocks).loss.item()
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    spans = len(checkpoint.model.config.retention_ratios)
    assert half["asked"] == 0.5 and half["retention"] == pytest.approx([0.5] * spans, abs=0.04)
    assert everything["retention"] == [1.0] * spans
    wrong = run_command(main, *command, "--data", str(tmp_path / "text.txt"), "--lengths", "32", "--retentions", "5")
    assert wrong.returncode == 1 and "from 0 to 1" in wrong.stderr
    nothing = run_command(main, *command)
    assert nothing.returncode == 1 and "nothing to do" in nothing.stderr


def test_the_harness_runs_a_task_on_our_checkpoint(tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = run_tasks(tiny_checkpoint, ["small_sums"], own=TASKS)
    assert 0 <= found["small_sums"]["acc,none"] <= 1
    with pytest.raises(AnalysisError, match="no task"):
        run_tasks(tiny_checkpoint, ["nothing_like_it"])
