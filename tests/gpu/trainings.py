"""The long trainings, as far as their time limits let them: a deep conversion, and a family of models trained alike.

Their runs lie beside the folder of results, so that the same command goes on with them after a stop; what was learned,
the logs and the cards are copied into the results.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from subllm.convert import __main__ as convert_command
from subllm.convert.fidelity import Fidelity
from subllm.runs.folder import FINAL, LOG_FILE, RUN_FILE, read_log
from subllm.text.packed import pack
from subllm.train import __main__ as train_command

from .checks import SMALL
from .making import CONFIG, base_of, run_command, text_of
from .runner import Found, Where

DEEP_SECONDS, FAMILY_SECONDS = 900.0, 900.0
_DEEP = "TTTTTT(TTTT(TTTTTT)TTTT)TTTTTTTTTT"  # a third of the blocks outside of the levels, as in the paper
_TRIAL = 8  # steps that the speed of a conversion is taken from
_USED = 0.7  # share of the time limit that the steps may take; fitting, evaluating and saving take the rest
_FULL, _SHORT = 60_000_000, 20_000_000  # tokens
_ONE_BLOCK_EACH = {"model.structure": "T(T)T(T)T(T)T(T)T(T)T(T)", "model.retention_ratio": 0.5}
_HALVED = {"model.structure": "TTT(TT)(TT)(TT)TTT", "model.retention_ratio": 0.5}
_DIVIDED = {
    "model.structure": "CCCCCCCCCCCC",
    "model.light_heads": 2,
    "model.light_intermediate_size": 320,
    "model.routed": {"query": 0.5, "key_value": 0.5, "mlp": 0.5},
}
FAMILY: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("subllm", _FULL, {}),
    ("llama", _FULL, {"dense": True}),
    ("subllm, other seed", _SHORT, {"seed": 1}),
    ("llama, other seed", _SHORT, {"seed": 1, "dense": True}),
    ("mixture of depths", _SHORT, {"model.router": "mod"} | _ONE_BLOCK_EACH),
    ("groups merged", _SHORT, {"model.router": "stride"} | _HALVED),
    ("light and heavy branches", _SHORT, _DIVIDED),
    ("even distances", _SHORT, {"ablation": "stride"}),
    ("random tokens", _SHORT, {"ablation": "random"}),
    ("no bypass", _SHORT, {"ablation": "no-bypass"}),
)
"""Name, tokens and settings of each member, the most telling first."""


def _kept(where: Where, name: str) -> Path:
    folder = where.results.with_name(f"{where.results.name}-runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def deep_conversion(where: Where) -> Found:
    """`subllm convert llama` of the demo's base to the deep structure, in sequences of 2,048 tokens."""
    folder, config = base_of(where)
    out, text = _kept(where, "deep-conversion"), text_of(where)
    length, batch = where.sized(2048, 32), where.sized(8, 1)
    options = [
        "llama", "--model", folder, "--structure", where.sized(_DEEP, config.structure), "--retention", 0.64,
        "--text", text, "--length", length, "--batch-size", batch, "--rank", where.sized(64, 2),
        "--held-out-blocks", where.sized(24, 1),
    ]  # fmt: skip
    plan = out / "plan.json"
    if not plan.is_file():  # the schedule needs the number of steps before the first one, whenever the run goes on
        trial = where.work / "trial"
        run_command(convert_command, *options, "--out", trial, "--steps", where.sized(_TRIAL, 2))
        taken = [entry for entry in read_log(trial / "training" / LOG_FILE) if "tokens_per_second" in entry]
        speed = fmean(entry["tokens_per_second"] for entry in taken[1:] or taken)
        steps = max(int(_USED * DEEP_SECONDS * speed / (length * batch)), 1)
        plan.write_text(json.dumps({"steps": min(steps, where.sized(10**6, 2))}))
    steps = json.loads(plan.read_text())["steps"]
    seconds = run_command(convert_command, *options, "--out", out / "converted", "--steps", steps)
    for name in ("learned", "training/" + LOG_FILE, "training/" + RUN_FILE):
        _copy(out / "converted" / name, where.folder / Path(name).name)
    log = read_log(out / "converted" / "training" / LOG_FILE)
    evaluations = [(entry["step"], Fidelity.from_log(entry)) for entry in log if "eval_loss" in entry]
    lines = ["| step | tokens | on held-out text |", "| ---: | ---: | --- |"]
    lines += [f"| {step:,} | {step * length * batch:,} | {found} |" for step, found in evaluations]
    last = evaluations[-1][1]
    found = {"perplexity over the dense one": last.perplexity_ratio, "agreement": last.agreement}
    return Found({"tokens": steps * length * batch, "seconds of the last run": seconds, **found}, "\n".join(lines))


def family(where: Where) -> Found:
    """`subllm train` of the small configuration, its LLaMA, its ablations and other routers, on the same text."""
    out = _kept(where, "family")
    data = out / "packed"
    if not data.is_dir():
        pack([text_of(where)], AutoTokenizer.from_pretrained(SMALL), data, held_out=where.sized(0.02, 0.1))
    batch, length = where.sized(32, 2), where.sized(512, 32)
    lines = ["| model | tokens | held-out loss | tokens/s |", "| --- | ---: | ---: | ---: |"]
    facts: dict[str, Any] = {}
    for name, tokens, settings in FAMILY[: where.sized(None, 2)]:
        steps = where.sized(tokens // (batch * length), 2)
        folder = out / name.replace(", ", "-").replace(" ", "-")
        all_settings = {
            "steps": steps, "batch_size": batch, "micro_batch_size": batch, "length": length, "learning_rate": 2e-3,
            "warmup_steps": max(steps // 25, 1), "balancer_steps": steps, "bypass_steps": steps,
            "log_every": where.sized(10, 1), "evaluate_every": max(steps // 20, 1), "save_every": max(steps // 20, 1),
            "snapshot_every": max(steps // 10, 1), "evaluation_blocks": where.sized(256, 2),
        } | where.sized({}, {"precision": "float32"}) | settings  # fmt: skip
        values = (f"{key}={json.dumps(value)}" for key, value in all_settings.items())
        run_command(
            train_command, "--config", CONFIG, "--data", data, "--out", folder, "--set", *values
        )  # goes on where it stopped, and does nothing once it has ended
        _copy_run(folder, where.folder / folder.name, whole=tokens == _FULL)
        log = [*read_log(folder / LOG_FILE)]
        lines.append(_row(name, steps * batch * length, log))
        facts[f"loss, {name}"] = _held_out_loss(log)
        (where.folder / "members.md").write_text("\n".join(lines) + "\n")  # of those that ended before the time limit
    return Found(facts, "\n".join(lines))


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
