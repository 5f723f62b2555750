"""Making checkpoints on the card: a conversion, training steps, and a training that is stopped and goes on."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoTokenizer

from analysis.commands import training_step as training_step_command
from analysis.cost.benchmark_text import benchmark_text
from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
from subllm.checkpoints.files import DENSE_TWIN
from subllm.convert import __main__ as convert_command
from subllm.convert.fidelity import Fidelity
from subllm.runs.folder import LOG_FILE, RUN_FILE, read_log
from subllm.text.packed import pack
from subllm.train import __main__ as train_command

from .bundle import text_folder
from .checks import SMALL, checkpoint_folder
from .runner import Found, Where

_STOPPED = 130  # exit code of a training that a signal stopped
CONFIG = ASSETS / "training" / "small.json"


def conversion(where: Where) -> Found:
    """`subllm convert`: chats of a batch, a conversion of the demo's base, and a further one that starts from it."""
    folder, config = base_of(where)
    text, chats = text_of(where), where.work / "chats.jsonl"
    found: dict[str, Any] = {}
    count = where.sized(8, 2)
    seconds = run_command(
        convert_command, "chats", "--model", folder, "--topics", text, "--out", chats, "--count", count,
        "--batch-size", count, "--new-tokens", where.sized(220, 4),
    )  # fmt: skip
    found |= {"chats": len(chats.read_text().splitlines()), "seconds for the chats": seconds}
    lines = ["| command | seconds | until the first step | ms per step | loss | kept |", "| --- " + "| ---: " * 5 + "|"]
    steps = {"first": where.sized(100, 2), "from": where.sized(10, 1)}
    for name, number in steps.items():
        out = where.work / name
        options = ["--from", where.work / "first" / "learned"] if name == "from" else []
        options += where.sized([], ["--length", 32, "--batch-size", 1, "--rank", 2])
        began = time.time()
        seconds = run_command(
            convert_command, "llama", "--model", folder, "--structure", config.structure, "--text", text, "--out", out,
            "--retention", *config.retention_ratios, "--steps", number, "--held-out-blocks", where.sized(8, 1),
            *options,
        )  # fmt: skip
        log = [entry for entry in read_log(out / "training" / LOG_FILE) if "loss" in entry]
        fitted = (out / "training" / RUN_FILE).stat().st_mtime - began
        step = fmean(entry["tokens"] / entry["step"] / entry["tokens_per_second"] for entry in log[1:] or log)
        part = max(len(log) // 10, 1)
        first, last = (fmean(entry["loss"] for entry in each) for each in (log[:part], log[-part:]))
        kept = [value for name, value in sorted(log[-1].items()) if name.startswith("retention_")]
        lines.append(
            f"| {name} | {seconds:.1f} | {fitted:.1f} | {1000 * step:.0f} | {first:.3f} → {last:.3f} "
            f"| {', '.join(f'{share:.0%}' for share in kept)} |"
        )
        if name == "first":
            far = max(abs(a - b) for a, b in zip(_held_out(out), config.retention_ratios, strict=True))
            found |= {"seconds until the first step": fitted, "ms per step": 1000 * step}
            found |= {"last loss over first": last / first, "farthest retention from nominal": far}
    return Found(found, "\n".join(lines))


def _held_out(out: Path) -> list[float]:
    """Share that each level keeps of held-out text after the last step."""
    *_, last = (entry for entry in read_log(out / "training" / LOG_FILE) if "eval_loss" in entry)
    return Fidelity.from_log(last).retention


def base_of(where: Where) -> tuple[Path, Any]:
    """A LLaMA to convert, and the configuration to give it; in a dry run, a random one that can write chats."""
    if not where.dry:
        folder = checkpoint_folder(where)
        return folder / DENSE_TWIN, read_config(folder)
    config, folder = read_config(SMALL), SMALL / DENSE_TWIN
    copy = where.work / "base"
    copy.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, copy / file.name)
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(copy)
    return copy, config


def training_step(where: Where) -> Found:
    """`subllm training-step` of the small configuration."""
    lengths = where.sized([512, 2048, 4096], [32])
    run_command(
        training_step_command, "--config", CONFIG, "--precision", "bf16", "--lengths", *lengths,
        "--tokens", where.sized(4096, 32), "--repeats", where.sized(10, 1), "--out", where.folder,
    )  # fmt: skip
    (file,) = where.folder.glob("training-*.md")
    table = file.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    speedups = {f"speed-up, {row[0]}": float(row[2].partition("×")[0]) for row in rows if "×" in row[2]}
    return Found(dict(speedups), table)


def training(where: Where) -> Found:
    """`subllm train` of the small configuration, once at a stretch, and once stopped by a signal and gone on."""
    data = pack([text_of(where)], AutoTokenizer.from_pretrained(SMALL), where.work / "packed", held_out=0.1).folder
    steps = where.sized(50, 8)
    settings = {"steps": steps, "log_every": 1, "save_every": steps, "evaluate_every": steps, "snapshot_every": steps}
    settings |= {"warmup_steps": 5, "evaluation_blocks": 2} | where.sized({}, {"length": 32, "precision": "float32"})
    options = ["--config", CONFIG, "--data", data, "--set", *(f"{name}={value}" for name, value in settings.items())]
    whole, stopped = where.work / "whole", where.work / "stopped"
    seconds = run_command(train_command, *options, "--out", whole)
    watcher = threading.Thread(target=_stop_at, args=(stopped / LOG_FILE, steps // 2), daemon=True)
    watcher.start()
    code = train_command.main([*map(str, options), "--out", str(stopped)])
    at = len(_losses(stopped))
    if code not in (0, _STOPPED):
        raise RuntimeError(f"subllm train ended with {code}")
    run_command(train_command, *options, "--out", stopped)
    losses = [_losses(folder) for folder in (whole, stopped)]
    apart = {step: abs(losses[0][step] - losses[1][step]) for step in losses[0]}
    lines = ["| step | loss | loss of the stopped run |", "| ---: | ---: | ---: |"]
    lines += [
        f"| {step} | {losses[0][step]:.4f} | {losses[1][step]:.4f} |" for step in sorted(apart)[:: max(steps // 10, 1)]
    ]
    found = {"seconds at a stretch": seconds, "stopped after step": at, "steps": steps}
    return Found(found | {"largest difference of a loss after stopping": max(apart.values())}, "\n".join(lines))


def _losses(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read_log(folder / LOG_FILE) if "loss" in entry}


def _stop_at(log: Path, step: int) -> None:
    """Send this process SIGTERM, as a machine does that wants it gone, once a step is in a run's log."""
    while not (log.is_file() and any(entry["step"] >= step for entry in read_log(log))):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def run_command(command: Any, *arguments: object) -> float:
    """Run a command of ours in this process; seconds that it took."""
    began = time.perf_counter()
    code = command.main([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"{command.__name__} ended with {code}; log.txt has its message")
    return time.perf_counter() - began


def text_of(where: Where) -> Path:
    """Folder of text: the bundle's, or else the manual that every Python carries."""
    bundled = text_folder()
    if bundled is not None and not where.dry:
        return bundled
    folder = where.work / "text"
    if not folder.is_dir():
        folder.mkdir()
        documents = [text for text in benchmark_text().split("\n\n") if len(text) > 200][: where.sized(None, 400)]
        documents += [
            f"The {animal} is an animal that people keep. {documents[0]}" for animal in ("cat", "hen", "goat")
        ]
        (folder / "manual.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return folder
