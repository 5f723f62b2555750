"""What a visitor of the app does, through the app's own engine: a run, an edit, an attribution, other dtypes."""

import gc
import time
from typing import Any

import psutil
import torch

from analysis.cost.benchmark_text import prompt_of
from analysis.debug.attribution_methods import Method
from analysis.debug.edits import parse_edits
from analysis.debug.target import Question
from analysis.guard import silent
from analysis.run import RunOptions
from app import engine
from app.engine.runs import explain

from .checks import checkpoint_folder, loaded
from .runner import Found, Where


def app(where: Where) -> Found:
    """A trace, an edit and an attribution of a long prompt; three dtypes in a row, and the memory that stays."""
    folder, length = checkpoint_folder(where), where.sized(8000, 40)
    text = _text(where, length)
    dtypes = where.sized(("bfloat16", "float16", "float32"), ("bfloat16", "float32"))
    lines = ["| dtype | what | seconds | MiB on the device |", "| --- | --- | ---: | ---: |"]
    found: dict[str, Any] = {}
    weights: list[int] = []

    def note(dtype: str, what: str, began: float) -> None:
        lines.append(f"| {dtype} | {what} | {time.perf_counter() - began:.2f} | {_held(where) / 2**20:,.0f} |")

    gc.collect()
    before = _held(where)
    for number, dtype in enumerate(dtypes):
        spec = engine.ModelSpec("bundle", folder, where.device, dtype)
        began = time.perf_counter()
        checkpoint, dense = spec.load()
        weights.append(sum(_bytes(model) for model in (checkpoint.model, dense.model)))
        del checkpoint, dense
        note(dtype, "load", began)
        for sign in ("-", "*"):  # the first pass of a process makes what later ones find
            began = time.perf_counter()
            options = RunOptions(new_tokens=0, compare=False)
            stages = engine.run(
                engine.Recipe(f"{sign} {text}", False, spec), options, silent, truncate=True, limit=length
            )
            trace, _ = next(stages)
            stages.close()
            seconds = time.perf_counter() - began
            note(dtype, "a first view" if sign == "-" else "another prompt's first view", began)
        found.setdefault("seconds to the first view", seconds)
        if number:
            continue
        began = time.perf_counter()
        edits = parse_edits(f"drop {length // 2}-{length // 2 + 3}@1")
        for _ in engine.edited(spec, trace, "", edits, silent, length + 64):
            pass
        note(dtype, "edit", began)
        began = time.perf_counter()
        question = Question(int(trace.routing.reached[-1].nonzero()[0][-1]), level=len(trace.routing.levels))
        explain(spec, trace, question, silent, method=Method.INPUT_X_GRADIENT)
        note(dtype, "attribution", began)
    gc.collect()
    if where.device.startswith("cuda"):
        beyond = _held(where) - before - sum(weights[-2:])  # the engine keeps two
        found["MiB beyond the kept models' weights"] = beyond / 2**20
    return Found(found, f"{length:,} tokens.\n\n" + "\n".join(lines))


def _text(where: Where, length: int) -> str:
    checkpoint = loaded(where)
    return str(checkpoint.tokenizer.decode(prompt_of(checkpoint, length)[0, :length]))


def _bytes(model: Any) -> int:
    stored = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in model.state_dict().values()
    }
    return sum(stored.values())


def _held(where: Where) -> int:
    """Bytes of tensors on the GPU; on the CPU, memory of the process."""
    if where.device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)
