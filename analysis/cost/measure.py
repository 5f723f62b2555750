"""Time, memory and energy of passes over a prompt, measured the same way on the CPU and on a GPU."""

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pynvml
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from subllm import Event, Probe, Ran
from subllm.routing import Bypass, LevelTokens, Override, Router, Selection

Pass = Callable[[], object]
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


class Took(NamedTuple):
    """What one pass took.

    Attributes:
        seconds: on the wall clock.
        busy: seconds of processor time, all threads of the process together.
        joules: of the GPU; 0 where its driver does not count them.
    """

    seconds: float
    busy: float
    joules: float


def timed(run: Pass, device: torch.device) -> Took:
    """Measure one pass, until the device is done with it.

    Args:
        run: the pass.
        device: that it runs on.
    """
    _finish(device)
    wall, busy, joules = time.perf_counter(), time.process_time(), _joules(device)
    run()
    _finish(device)
    return Took(time.perf_counter() - wall, time.process_time() - busy, _joules(device) - joules)


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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        reserved = torch.cuda.memory_reserved(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) - reserved
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the highest resident set is counted anew
        before = _highest_resident()
        run()
        return _highest_resident() - before
    except (OSError, AttributeError, StopIteration):
        return None


def free_bytes(device: torch.device) -> int:
    """Memory that a pass on a device may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


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
    ends: list[float] = []  # of the steps
    brackets: list[bool] = []

    def observe(event: Event) -> None:
        _finish(device)
        ends.append(time.perf_counter())
        brackets.append(not isinstance(event, Ran))

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        clock.start()
        selection = router.select(tokens, False) if override is None else override(level, router, tokens)
        clock.stop("scorer")
        return selection

    with _hooked(model, clock):
        total = timed(lambda: run(Probe(observe=observe, override=decide)), device).seconds
    assert clock.first is not None
    steps = [after - before for before, after in pairwise([clock.first, *ends])]
    modules = clock.seconds
    routing = sum(step for step, bracket in zip(steps, brackets, strict=True) if bracket)
    modules["gather and scatter"] = max(routing - modules["scorer"] - modules["bypass"], 0.0)
    modules["rest"] = max(total - sum(modules.values()), 0.0)
    return Anatomy([*steps, total - sum(steps)], modules)


class _Clock:
    """Adds up seconds by kind; one thing runs at a time.

    Attributes:
        seconds: by kind.
        first: when it was first started; the first step of a structure begins with a norm or a decision.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(("attention", "mlp", "norms", "scorer", "bypass", "head"), 0.0)
        self.first: float | None = None
        self._device, self._started = device, 0.0

    def start(self) -> None:
        _finish(self._device)
        self._started = time.perf_counter()
        self.first = self._started if self.first is None else self.first

    def stop(self, kind: str) -> None:
        _finish(self._device)
        self.seconds[kind] += time.perf_counter() - self._started


@contextmanager
def _hooked(model: Any, clock: _Clock) -> Iterator[None]:
    """A clock that runs inside of the model's modules while the context is open; events tell of whole steps only."""
    kinds: dict[str, list[nn.Module]] = {
        "attention": [layer.self_attn for layer in model.model.layers],
        "mlp": [layer.mlp for layer in model.model.layers],
        "norms": [module for name, module in model.named_modules() if name.endswith("norm")],
        "bypass": [module for module in model.modules() if isinstance(module, Bypass)],
        "head": [model.lm_head],
    }
    handles = []
    for kind, modules in kinds.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: clock.start()))
            handles.append(module.register_forward_hook(lambda *_, kind=kind: clock.stop(kind)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _joules(device: torch.device) -> float:
    """Energy that a GPU took since its driver was loaded; 0 where it does not count."""
    if device.type != "cuda":
        return 0.0
    with suppress(pynvml.NVMLError):
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(_handle(torch.cuda.get_device_properties(device).uuid)) / 1000
    return 0.0


@cache
def _handle(uuid: object) -> Any:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def _highest_resident() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
