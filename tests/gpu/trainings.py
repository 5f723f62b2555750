"""The long trainings, as far as their time limits let them: both demos trained on, and a family trained alike.

Their runs lie beside the folder of results, so that the same command goes on with them after a stop; what was learned,
the logs and the cards are copied into the results.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
from subllm.convert import __main__ as convert_command
from subllm.convert.fidelity import Fidelity
from subllm.runs.folder import FINAL, LOG_FILE, RUN_FILE, read_log
from subllm.text.packed import pack
from subllm.train import __main__ as train_command

from .checks import SMALL
from .making import CONFIG, base_of, run_command, text_of
from .runner import Found, Where

CONVERSION_SECONDS, FAMILY_SECONDS = 600.0, 900.0
_RANKS = {"deep": ("--rank", 32, "--inner-rank", 64), "demo": ("--rank", 32)}  # of what ships
_CHATS = 1536  # that the base writes for a conversion
_DISTANCE = 6500  # characters of text that repeats itself, for sequences of 2,048 tokens
_TRIAL = 8  # steps that the speed of a conversion is taken from
_USED = 0.7  # share of the time limit that the steps may take; fitting, evaluating and saving take the rest
_CORES_EACH, _MOST_AT_ONCE = 3, 4  # of members that share the card: one alone leaves most of it idle
_FULL, _SHORT = 60_000_000, 20_000_000  # tokens
_ONE_BLOCK_EACH = {"model.structure": "T(T)T(T)T(T)T(T)T(T)T(T)", "model.retention_ratio": 0.5}
_HALVED = {"model.structure": "TTT(TT)(TT)(TT)TTT", "model.retention_ratio": 0.5, "model.bypass_minimum": [0.0, 0.0]}
_DIVIDED = {
    "model.structure": "CCCCCCCCCCCC",
    "model.light_heads": 2,
    "model.light_intermediate_size": 320,
    "model.routed": {"query": 0.5, "key_value": 0.5, "mlp": 0.5},
}
FAMILY: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("subllm", _FULL, {}),
    ("llama", _FULL, {"dense": True}),
    ("subllm, short", _SHORT, {}),
    ("llama, short", _SHORT, {"dense": True}),
    ("even distances", _SHORT, {"ablation": "stride"}),
    ("random tokens", _SHORT, {"ablation": "random"}),
    ("no bypass", _SHORT, {"ablation": "no-bypass"}),
    ("mixture of depths", _SHORT, {"model.router": "mod"} | _ONE_BLOCK_EACH),
    ("groups merged", _SHORT, {"model.router": "stride"} | _HALVED),
    ("light and heavy branches", _SHORT, _DIVIDED),
    ("subllm, short, other seed", _SHORT, {"seed": 1}),
    ("llama, short, other seed", _SHORT, {"seed": 1, "dense": True}),
    ("even distances, other seed", _SHORT, {"seed": 1, "ablation": "stride"}),
)
"""Name, tokens and settings of each member, the most telling first."""


def _kept(where: Where, name: str) -> Path:
    folder = where.results.with_name(f"{where.results.name}-runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def deep_conversion(where: Where) -> Found:
    """`subllm convert llama` to the deep demo's structure, from what ships on, in sequences of 2,048 tokens."""
    return _conversion(where, "deep")


def demo_conversion(where: Where) -> Found:
    """The same of the first demo."""
    return _conversion(where, "demo")


def _conversion(where: Where, name: str) -> Found:
    folder, config = base_of(where)
    shipped = ASSETS / name
    config = where.sized(read_config(shipped), config)
    out = _kept(where, f"{name}-conversion")
    length, batch = where.sized(2048, 32), where.sized(8, 1)
    options = [
        "llama", "--model", folder, "--structure", config.structure, "--retention", *config.retention_ratios,
        "--text", *_text(where, folder), "--length", length, "--batch-size", batch,
        "--held-out-blocks", where.sized(24, 1), "--evaluate-every", 200, "--save-every", 200,
        *where.sized(("--from", shipped, "--start-retention", config.retention_ratios[0], "--average", 0.99), ()),
        *where.sized(_RANKS[name], ("--rank", 2)),
    ]  # fmt: skip
    plan = out / "plan.json"
    if not plan.is_file():  # the schedule needs the number of steps before the first one, whenever the run goes on
        trial = where.work / "trial"
        run_command(convert_command, *options, "--out", trial, "--steps", where.sized(_TRIAL, 2))
        taken = [entry for entry in read_log(trial / "training" / LOG_FILE) if "tokens_per_second" in entry]
        speed = fmean(entry["tokens_per_second"] for entry in taken[1:] or taken)
        steps = max(int(_USED * CONVERSION_SECONDS * speed / (length * batch)), 1)
        plan.write_text(json.dumps({"steps": min(steps, where.sized(10**6, 2))}))
    steps = json.loads(plan.read_text())["steps"]
    seconds = run_command(convert_command, *options, "--out", out / "converted", "--steps", steps)
    for file in ("learned", "training/" + LOG_FILE, "training/" + RUN_FILE):
        _copy(out / "converted" / file, where.folder / Path(file).name)
    log = read_log(out / "converted" / "training" / LOG_FILE)
    evaluations = [(entry["step"], Fidelity.from_log(entry)) for entry in log if "eval_loss" in entry]
    lines = ["| step | tokens | on held-out text |", "| ---: | ---: | --- |"]
    lines += [f"| {step:,} | {step * length * batch:,} | {found} |" for step, found in evaluations]
    last = evaluations[-1][1]
    found = {"perplexity over the dense one": last.perplexity_ratio, "agreement": last.agreement}
    return Found({"tokens": steps * length * batch, "seconds of the last run": seconds, **found}, "\n".join(lines))


def _text(where: Where, model: Path) -> list[Path]:
    """Text for conversions: what there is, chats that the base writes, and text that asks for what stood before."""
    text, out = text_of(where), _kept(where, "text")
    chats, repeats = out / "chats.jsonl", out / "repeats"
    if where.dry:
        return [text]
    if not chats.is_file():
        batch = ("--count", _CHATS, "--batch-size", _CHATS // 3)
        run_command(convert_command, "chats", "--model", model, "--topics", text, "--out", chats, *batch)
    if not repeats.is_dir():
        own = ("--topics", text, "--out", repeats, "--distance", _DISTANCE)
        run_command(convert_command, "repeats", "--text", text, *own)
    return [text, chats, repeats]


def family(where: Where) -> Found:
    """`subllm train` of the small configuration, its LLaMA, its ablations and other routers, on the same text."""
    out = _kept(where, "family")
    data = out / "packed"
    if not data.is_dir():
        pack([text_of(where)], AutoTokenizer.from_pretrained(SMALL), data, held_out=where.sized(0.02, 0.1))
    members = FAMILY[: where.sized(None, 2)]
    at_once = min((os.cpu_count() or 1) // _CORES_EACH, _MOST_AT_ONCE) if where.device.startswith("cuda") else 1
    ended: dict[int, tuple[str, float]] = {}
    failed: list[str] = []
    with ProcessPoolExecutor(max(at_once, 1), multiprocessing.get_context("spawn")) as pool:
        begun = {pool.submit(_member, where, out, number): number for number in range(len(members))}
        for each in as_completed(begun):
            if each.exception():
                failed.append(f"{members[begun[each]][0]}: {each.exception()}")
                continue
            ended[begun[each]] = each.result()
            lines = ["| model | tokens | held-out loss | tokens/s |", "| --- | ---: | ---: | ---: |"]
            lines += [ended[number][0] for number in sorted(ended)]
            (where.folder / "members.md").write_text("\n".join(lines) + "\n")  # before the time limit
    if failed:
        raise RuntimeError("; ".join(failed))
    return Found({f"loss, {members[number][0]}": ended[number][1] for number in sorted(ended)}, "\n".join(lines))


def _member(where: Where, out: Path, number: int) -> tuple[str, float]:
    """Train a member of the family; its row of the table, and its loss."""
    name, tokens, settings = FAMILY[number]
    batch, length = where.sized(32, 2), where.sized(512, 32)
    steps = where.sized(tokens // (batch * length), 2)
    folder = out / name.replace(", ", "-").replace(" ", "-")
    all_settings = {
        "steps": steps, "batch_size": batch, "micro_batch_size": batch, "length": length, "learning_rate": 2e-3,
        "warmup_steps": max(steps // 25, 1), "balancer_steps": steps, "bypass_steps": steps,
        "log_every": where.sized(10, 1), "evaluate_every": max(steps // 20, 1), "save_every": max(steps // 5, 1),
        "snapshot_every": max(steps // 10, 1), "evaluation_blocks": where.sized(256, 2),
    } | where.sized({}, {"precision": "float32"}) | settings  # fmt: skip
    values = (f"{key}={json.dumps(value)}" for key, value in all_settings.items())
    run_command(
        train_command, "--config", CONFIG, "--data", out / "packed", "--out", folder, "--set", *values
    )  # goes on where it stopped, and does nothing once it has ended
    _copy_run(folder, where.folder / folder.name, whole=tokens == _FULL)
    log = [*read_log(folder / LOG_FILE)]
    return _row(name, steps * batch * length, log), _held_out_loss(log)


def _row(name: str, tokens: int, log: Sequence[dict[str, Any]]) -> str:
    speeds = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry]
    return f"| {name} | {tokens:,} | {_held_out_loss(log):.3f} | {fmean(speeds):,.0f} |"


def _held_out_loss(log: Sequence[dict[str, Any]]) -> float:
    *_, last = (entry["eval_loss"] for entry in log if "eval_loss" in entry)
    return float(last)


def _copy_run(run: Path, to: Path, *, whole: bool) -> None:
    """Log and snapshots of a training, for the page Watch training; with the model if it is `whole`."""
    for name in (LOG_FILE, RUN_FILE, "snapshots"):
        _copy(run / name, to / name)
    if whole:  # in half the size
        AutoModelForCausalLM.from_pretrained(run / FINAL, dtype=torch.float16).save_pretrained(to / FINAL)
        AutoTokenizer.from_pretrained(run / FINAL).save_pretrained(to / FINAL)


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, to, dirs_exist_ok=True)
    elif source.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
