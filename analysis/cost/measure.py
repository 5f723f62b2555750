"""Time, memory and energy of passes over a prompt, measured the same way on the CPU and on a GPU."""

import ctypes
import os
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pynvml
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from subllm import Event, Probe, Ran, SubllmForCausalLM
from subllm.checkpoints.device import dtype_name, release_memory
from subllm.model.light_heavy import LightHeavyBlock
from subllm.routing import Bypass, LevelTokens, Override, Router, Selection

from .sizes import level_tokens, prefill_bytes, without_levels

Pass = Callable[[], object]
_MOST_ROWS = 8  # more are no faster
_LONG = 2.0  # seconds of a block whose energy is measured
_SILENT = "6"  # of the profiler's library, above all that it writes; torch raises what goes wrong
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


class Took(NamedTuple):
    """What one pass took.

    Attributes:
        seconds: on the wall clock.
        busy: seconds of processor time, all threads of the process together.
    """

    seconds: float
    busy: float


def timed(run: Pass, device: torch.device) -> Took:
    """Measure one pass, until the device is done with it.

    Args:
        run: the pass.
        device: that it runs on.
    """
    finish(device)
    wall, busy = time.perf_counter(), time.process_time()
    run()
    finish(device)
    return Took(time.perf_counter() - wall, time.process_time() - busy)


def alternate(
    passes: Mapping[str, Pass], repeats: int, device: torch.device, before: Callable[[int], None] = lambda done: None
) -> dict[str, list[Took]]:
    """Time passes in turn, so that a machine that slows down slows them all.

    Args:
        passes: by name; each should have run before, so that nothing is measured for the first time.
        repeats: timed runs of each; the order is reversed every other time.
        device: that they run on.
        before: called before every run with how many are done.

    Returns:
        What every run took, by name.
    """
    took: dict[str, list[Took]] = {name: [] for name in passes}
    for repeat in range(repeats):
        for name in list(passes)[:: -1 if repeat % 2 else 1]:
            before(sum(map(len, took.values())))
            took[name].append(timed(passes[name], device))
    return took


def energy(
    passes: Mapping[str, Pass], device: torch.device, blocks: int = 2, seconds: float = _LONG
) -> dict[str, list[float]]:
    """Measure the energy of passes in blocks of many, since a GPU's counter moves in steps of tens of milliseconds.

    Args:
        passes: by name; each should have run before.
        device: that they run on.
        blocks: of each; they take turns.
        seconds: that a block takes at least.

    Returns:
        Joules of one pass, for every block, by name; no blocks where no energy is counted.
    """
    found: dict[str, list[float]] = {name: [] for name in passes}
    if _joules(device) is None:
        return found
    for block in range(blocks):
        for name in list(passes)[:: -1 if block % 2 else 1]:
            finish(device)
            before, began, done = _joules(device), time.perf_counter(), 0
            while not done or time.perf_counter() - began < seconds:
                passes[name]()
                finish(device)
                done += 1
            found[name].append(((_joules(device) or 0.0) - (before or 0.0)) / done)
    return found


def peak_bytes(run: Pass, device: torch.device) -> int:
    """Most memory that tensors made during a pass took at once.

    Counted by torch's allocators: on the CPU every allocation and release as the profiler sees it, on a GPU the
    caching allocator's peak. Buffers inside of matrix libraries are not seen; `resident_bytes` sees them.

    Args:
        run: the pass.
        device: that it runs on.

    Returns:
        Bytes beyond what was allocated before.
    """
    if device.type != "cpu":
        memory: Any = torch.get_device_module(device)
        finish(device)
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device)
        run()
        finish(device)
        return int(memory.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)  # read at its first use; else every pass leaves lines in the log
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = used = 0
    for event in events:
        used += event.nbytes()
        peak = max(peak, used)
    return peak


def resident_bytes(run: Pass, device: torch.device) -> int | None:
    """How far a pass raised the memory that the process really takes, as the operating system sees it.

    Args:
        run: the pass.
        device: that it runs on.

    Returns:
        On the CPU, bytes by which the highest resident set during the pass exceeds the one before it, after memory
        that was free already went back to the system; on a GPU, the same for what torch reserved there. None where
        the system does not tell (other systems than Linux).
    """
    if device.type != "cpu":
        memory: Any = torch.get_device_module(device)
        finish(device)
        release_memory()
        memory.reset_peak_memory_stats(device)
        reserved = memory.memory_reserved(device)
        run()
        finish(device)
        return int(memory.max_memory_reserved(device) - reserved)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the highest resident set is counted anew
        before = highest_resident()
        run()
        return highest_resident() - before
    except (OSError, AttributeError, StopIteration):
        return None


def free_bytes(device: torch.device) -> int:
    """Memory that a pass on a device may still take: what is free there, and what torch keeps without using it."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    memory: Any = torch.get_device_module(device)
    return int(memory.mem_get_info(device)[0] + memory.memory_reserved(device) - memory.memory_allocated(device))


def rows_that_fit(model: SubllmForCausalLM, tokens: int) -> int:
    """Number of prompts that a model may read at once without taking more than half of the memory that is free.

    Args:
        model: that reads them.
        tokens: of each prompt; all of them are counted at every level.
    """
    config = without_levels(model.config)
    each = prefill_bytes(config, level_tokens(config, tokens), 1, dtype_name(model))
    return max(1, min(_MOST_ROWS, int(free_bytes(model.device) / (2 * each))))


class Anatomy(NamedTuple):
    """Where the time of a forward pass went, in seconds.

    Attributes:
        steps: for every character of the structure; last, what came before the first and after the last.
        modules: by what was done: "attention", "mlp", "norms", "scorer" (all that decides which tokens are kept),
            "bypass", "gather and scatter", "head", and "rest" (residual additions, masks, embedding, Python).
    """

    steps: list[float]
    modules: dict[str, float]


def anatomy(
    model: Any, run: Callable[[Probe], object], device: torch.device, override: Override | None = None
) -> Anatomy:
    """Take the time of a forward pass apart.

    Args:
        model: a SUBLLM with its head.
        run: the pass, given a probe.
        device: that it runs on.
        override: decides in place of the model's routers.
    """
    clock = _Clock(device)
    ends: list[int] = []  # of the steps
    brackets: list[bool] = []

    def observe(event: Event) -> None:
        ends.append(clock.mark())
        brackets.append(not isinstance(event, Ran))

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        clock.start()
        selection = router.select(tokens, False) if override is None else override(level, router, tokens)
        clock.stop("scorer")
        return selection

    with _hooked(model, clock):
        total = timed(lambda: run(Probe(observe=observe, override=decide)), device).seconds
    times = clock.times()
    steps = [times[after] - times[before] for before, after in pairwise([0, *ends])]  # the first starts with a part
    modules = dict.fromkeys(("attention", "mlp", "norms", "scorer", "bypass", "head"), 0.0)
    for kind, start, stop in clock.spans:
        modules[kind] += times[stop] - times[start]
    routing = sum(step for step, bracket in zip(steps, brackets, strict=True) if bracket)
    in_bracket = [*brackets, False]  # what follows the last step is in none
    parts = sum(times[stop] - times[start] for _, start, stop in clock.spans if in_bracket[bisect(ends, start)])
    modules["gather and scatter"] = max(routing - parts, 0.0)
    modules["rest"] = max(total - sum(modules.values()), 0.0)
    return Anatomy([*steps, max(total - sum(steps), 0.0)], modules)


class _Clock:
    """Marks moments of a pass on its device; one part runs at a time.

    An accelerator notes the moment itself when it gets there, and is asked once it is done: to wait at every mark would
    measure the waiting, which takes longer than a small kernel.

    Attributes:
        spans: kind of each part that ran, and its first and last mark.
    """

    def __init__(self, device: torch.device) -> None:
        self.spans: list[tuple[str, int, int]] = []
        self._device, self._started = device, 0
        self._module: Any = torch.get_device_module(device)
        self._marks: list[Any] = []  # seconds, or events

    def mark(self) -> int:
        """Number of a new mark."""
        if self._device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = self._module.Event(enable_timing=True)
            event.record(self._module.current_stream(self._device))
            self._marks.append(event)
        return len(self._marks) - 1

    def start(self) -> None:
        self._started = self.mark()

    def stop(self, kind: str) -> None:
        self.spans.append((kind, self._started, self.mark()))

    def times(self) -> list[float]:
        """Seconds from the first mark to every mark; the device has to be done with the pass."""
        first = self._marks[0]
        if self._device.type == "cpu":
            return [mark - first for mark in self._marks]
        return [first.elapsed_time(mark) / 1e3 for mark in self._marks]


@contextmanager
def _hooked(model: Any, clock: _Clock) -> Iterator[None]:
    """A clock that runs inside of the model's modules while the context is open; events tell of whole steps only."""
    divided = [layer for layer in model.model.layers if isinstance(layer, LightHeavyBlock)]  # call neither of the two
    plain = [layer for layer in model.model.layers if not isinstance(layer, LightHeavyBlock)]
    kinds: dict[str, list[nn.Module]] = {
        "attention": [layer.self_attn for layer in plain],
        "mlp": [layer.mlp for layer in plain],
        "norms": [module for name, module in model.named_modules() if name.endswith("norm")],
        "bypass": [module for module in model.modules() if isinstance(module, Bypass)],
        "head": [model.lm_head],
    }
    with ExitStack() as stack:
        for kind, modules in kinds.items():
            for module in modules:
                stack.callback(module.register_forward_pre_hook(lambda *_: clock.start()).remove)
                stack.callback(module.register_forward_hook(lambda *_, kind=kind: clock.stop(kind)).remove)
        for layer in divided:
            for kind, name in (("attention", "attend"), ("mlp", "transform")):
                setattr(layer, name, _clocked(getattr(layer, name), kind, clock))
                stack.callback(delattr, layer, name)
        yield


def _clocked(part: Callable[..., Any], kind: str, clock: _Clock) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        clock.start()
        found = part(*arguments)
        clock.stop(kind)
        return found

    return run


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was asked to."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _joules(device: torch.device) -> float | None:
    """Energy that a GPU took since its driver was loaded; None where nobody counts it."""
    if device.type != "cuda":
        return None
    with suppress(pynvml.NVMLError):
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(_handle(uuid)) / 1000)
    return None


@cache
def _handle(uuid: str) -> Any:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def highest_resident() -> int:
    """Most memory of the process at once, in bytes, since it began or the mark was taken back.

    What `getrusage` calls so begins with the memory of the process that started this one.
    """
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
