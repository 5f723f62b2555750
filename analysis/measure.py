"""Time and memory of passes over a prompt, measured the same way on the CPU and on a GPU."""

import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch.profiler import ProfilerActivity, profile

from subllm import StreamState

Pass = Callable[[], object]


def peak_bytes(run: Pass, device: torch.device) -> int:
    """Most memory that tensors made during a pass took at once.

    Counted by torch's allocators: on the CPU every allocation and release as the profiler sees it, on a GPU the
    caching allocator's peak. Buffers inside of matrix libraries are not seen.

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


def alternate(
    passes: Mapping[str, Pass], repeats: int, device: torch.device, before: Callable[[int], None] = lambda done: None
) -> dict[str, list[float]]:
    """Time passes in turn, so that a machine that slows down slows them all.

    Args:
        passes: by name; each should have run before, so that nothing is measured for the first time.
        repeats: timed runs of each; the order is reversed every other time.
        device: that they run on.
        before: called before every run with how many are done.

    Returns:
        Seconds of every run, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats):
        for name in list(passes)[:: -1 if repeat % 2 else 1]:
            before(sum(map(len, seconds.values())))
            seconds[name].append(timed(passes[name], device))
    return seconds


def timed(run: Pass, device: torch.device) -> float:
    """Seconds of one pass, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def step_seconds(run: Callable[[Callable[[StreamState], None]], object], device: torch.device) -> list[float]:
    """Where the time of a forward pass goes.

    Args:
        run: the pass, given an observer.
        device: that it runs on.

    Returns:
        Seconds of every character of the structure; last, those before the first and after the last.
    """
    marks: list[float] = []

    def mark(state: StreamState) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    total = timed(lambda: run(mark), device)
    steps = [after - before for before, after in pairwise(marks)]
    return [*steps, total - sum(steps)]


def device_name(device: torch.device) -> str:
    """What a measurement ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
