"""Is it right on the card: facts about it, the tests on it, and what the host waits for."""

import os
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from analysis.cost.benchmark_text import prompt_of
from subllm import SubllmCache
from subllm.assets import ASSETS
from subllm.checkpoints.device import pick_device, pick_dtype
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.demo import build_demo

from .runner import ROOT, Found, Where, cards

SMALL = ASSETS / "small" / "final"
_TOKENS = {0: "token", 3: "token with graphs"}


def checkpoint_folder(where: Where) -> Path:
    """Folder of the checkpoint that is measured: the demo, in a dry run the small one."""
    return SMALL if where.dry else build_demo()


def loaded(where: Where, dtype: str | None = None) -> Checkpoint:
    """That checkpoint on the device.

    Args:
        where: device.
        dtype: such as "bfloat16"; the device's best if left out.
    """
    return load_checkpoint(checkpoint_folder(where), where.device, dtype)


def facts(where: Where) -> Found:
    """The card, its driver and what is chosen for it."""
    device = pick_device()
    found = {"device": device, "dtype": pick_dtype(device), "torch": torch.__version__}
    found |= {"CUDA": str(torch.version.cuda), "architectures": " ".join(torch.cuda.get_arch_list())}
    found |= {"cards": ", ".join(cards()) or "none"}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        found |= {"card": about.name, "capability": f"{about.major}.{about.minor}"}
        found |= {"GB": f"{about.total_memory / 1e9:.1f}", "multiprocessors": str(about.multi_processor_count)}
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        text = f"nvidia-smi: {error}"
    return Found(dict(found), f"```\n{text.strip()}\n```")


def demo(where: Where) -> Found:
    """The checkpoint that the other parts measure, built from the bundle."""
    began = time.perf_counter()
    config = loaded(where).model.config
    return Found({"seconds": time.perf_counter() - began, "structure": str(config.structure)})


def device_tests(where: Where) -> Found:
    """The tests of `tests/device` on the card; in a dry run some of them, on the pretend accelerator."""
    return _tested(
        where, "tests/device", "--ignore", "tests/device/test_pretend.py", *where.sized((), ("-k", "training_step"))
    )


def golden(where: Where) -> Found:
    """The reference's numbers, and the properties of cached decoding and batches, in float32 on the card."""
    files = ["tests/subllm/model/test_golden.py", "tests/subllm/model/test_modeling.py"]
    chosen = where.sized("golden or cached or batch or later or decoding", "nested or later")
    return _tested(where, *files, "-k", chosen)


def gpu_tests(where: Where) -> Found:
    """All tests with the marker `gpu`."""
    return _tested(
        where, *where.sized(("tests/analysis", "tests/subllm"), ("tests/analysis/cost/test_measure.py",)), "-m", "gpu"
    )


class _Outcomes:
    """Counts the outcomes of a pytest session, and its warnings, which are no failures here."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.lines: list[str] = []
        self.warnings: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.count[report.outcome] += 1
        if report.outcome == "failed":
            said = str(getattr(report.longrepr, "reprcrash", report.longrepr)).strip().splitlines()
            self.lines.append(f"| {report.nodeid} | {said[-1][:300] if said else ''} |".replace("\n", " "))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.count["failed"] += 1
            self.lines.append(f"| {report.nodeid} | it cannot be collected |")

    def pytest_warning_recorded(self, warning_message: Any) -> None:
        self.warnings[str(warning_message.message).splitlines()[0][:200]] += 1


def _tested(where: Where, *arguments: str) -> Found:
    import pytest

    os.environ["SUBLLM_TEST_DEVICE"] = where.device  # before tests/conftest.py reads it
    outcomes = _Outcomes()
    options = ["-o", "filterwarnings=default", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    pytest.main([*options, *arguments], plugins=[outcomes])
    if not outcomes.count:
        raise RuntimeError(f"pytest {' '.join(arguments)} ran no test")
    lines = ["| failed | |", "| --- | --- |", *outcomes.lines] if outcomes.lines else []
    warned = [f"| {number} | {text.replace('|', '/')} |" for text, number in outcomes.warnings.most_common(20)]
    lines += ["", "| times | warning |", "| ---: | --- |", *warned] if warned else []
    counts = {name: outcomes.count[name] for name in ("passed", "failed", "skipped")}
    return Found({**counts, "warnings": sum(outcomes.warnings.values())}, "\n".join(lines))


@torch.no_grad()
def waits(where: Where) -> Found:
    """What the host waits for in a pass and for a new token, by line; on the CPU, the pretend accelerator counts."""
    checkpoint = loaded(where, "float32" if where.dry else None)
    model, length = checkpoint.model, where.sized(512, 24)
    prompts = prompt_of(checkpoint, length, 4)
    if not where.device.startswith("cuda"):
        from tests.device import pretend

        pretend.register()
        model = model.to(pretend.NAME)
    levels = model.config.parsed_structure.num_levels
    found, lines = {}, ["| what | waits | at |", "| --- | ---: | --- |"]
    for rows, padded in ((1, False), (4, False), (4, True)):
        ids = prompts[:rows].to(model.device)
        mask = torch.ones_like(ids[:, :length])
        mask[1:, :7] = 0
        name = f"{rows} row{'s, padded' if padded else 's' if rows > 1 else ''}"
        cache = SubllmCache(model.config)
        options = {"attention_mask": mask} if padded else {}
        model(ids[:, :length], past_key_values=SubllmCache(model.config), **options)  # makes what is made once
        with _waits(where) as reading:
            model(ids[:, :length], past_key_values=cache, **options)
        counted = {f"read, {name}": reading}
        for index in () if padded else (0, 1, 2, 3):  # the third one captures graphs
            with _waits(where) as writing:
                model(ids[:, length + index, None], past_key_values=cache)
            counted |= {f"{_TOKENS[index]}, {name}": writing} if index in _TOKENS else {}
        for what, counts in counted.items():
            found[f"waits beyond one per level, {what}"] = sum(counts.values()) - levels
            lines += [f"| {what} | {number} | {line} |" for line, number in counts.most_common()]
    return Found(dict(found), "\n".join(lines))


@contextmanager
def _waits(where: Where) -> Iterator[Counter[str]]:
    """Waits of the host for the device in the block, by the line that caused them."""
    counted: Counter[str] = Counter()
    if not where.device.startswith("cuda"):
        from tests.device.pretend import books

        with books() as asked:
            yield counted
        counted.update(asked.waits)
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counted
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counted.update(_line(each) for each in caught if "called a synchronizing" in str(each.message))


def _line(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    short: Sequence[str] = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else path.parts[-3:]
    return f"{'/'.join(short)}:{warning.lineno}"
