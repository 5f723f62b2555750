"""Jobs that tests kill, in processes forked from one that has imported everything: they start in milliseconds."""

import multiprocessing
import os
from pathlib import Path

import torch

from analysis.commands import efficiency
from subllm.child import run_child
from subllm.convert import __main__ as convert
from subllm.runs.folder import read_log
from subllm.train.config import TrainConfig
from subllm.train.loop import train

MODEL = {
    "structure": "T(T(T)T)T", "retention_ratio": 0.6, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {
    "model": MODEL, "steps": 8, "batch_size": 4, "micro_batch_size": 2, "length": 32, "warmup_steps": 2, "log_every": 1,
    "evaluate_every": 4, "save_every": 2, "snapshot_every": 4, "evaluation_blocks": 8,
    "prompts": ["the sum of 2 and 3 is 5", "a needle"],
}  # fmt: skip


def losses(folder):
    """Loss by step."""
    return {entry["step"]: entry["loss"] for entry in read_log(folder / "log.jsonl") if "loss" in entry}


def started(job, *arguments):
    """A process that does a job of this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_quietly, args=(job, *arguments))
    process.start()
    return process


def _quietly(job, *arguments):
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    raise SystemExit(job(*arguments))


def training(config, data, out):
    """`subllm train`."""
    train(TrainConfig.of(config), data, out)


def conversion(*arguments):
    """`subllm convert`."""
    return convert.main(arguments)


def sweep(*arguments):
    """`subllm efficiency`."""
    return efficiency.main(arguments)


def child(pid_file):
    """A program that starts another one and waits."""
    run_child(["sh", "-c", f"sleep 600 & echo $! $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; wait"])
