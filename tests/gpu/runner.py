"""Runs parts one after the other, each in a process of its own that is killed at its time limit.

The folder of the results has `summary.md`, and for every part a folder with `result.json` (status, facts), `result.md`
(table and machine), `log.txt` (its output) and what else it wrote. Run again, parts that are done are skipped, unless
the code, a version or the cards are others.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
import pynvml

from subllm.atomic import written_whole

ROOT = Path(__file__).parents[2]
MOST_BYTES = 60_000_000  # of a folder of results
_LEAST_SECONDS = 5.0  # with less left, a part is not begun
_LOG_BYTES = 500_000  # of the end of a part's output
_RESULT, _FOUND = "result.json", "found.json"
_CODE = ("subllm", "analysis", "app", "assets", "tests")
_SUFFIXES = (".py", ".json", ".safetensors")

Fact = bool | int | float | str


class Status(StrEnum):
    """How a part ended."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"
    LATE = "stopped at its time limit"
    NOT_RUN = "not run, the time was over"


@dataclass(frozen=True)
class Found:
    """What a part found out.

    Attributes:
        facts: by name, for comparison with what is expected.
        table: Markdown.
    """

    facts: dict[str, Fact]
    table: str = ""


@dataclass(frozen=True)
class Where:
    """What a part is told.

    Attributes:
        device: to run on, such as "cuda".
        dry: whether to run at tiny sizes, to see that the part works.
        results: folder of the results of all parts.
        folder: of the part's own results, kept if the part is run again.
        work: folder for large files, which is removed afterwards.
    """

    device: str
    dry: bool
    results: Path
    folder: Path = Path()
    work: Path = Path()

    def sized(self, full: Any, dry: Any) -> Any:
        """A size, for the dry run another."""
        return dry if self.dry else full


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        name: of its folder.
        seconds: time limit.
        run: finds it out, in a process of its own.
    """

    name: str
    seconds: float
    run: Callable[[Where], Found]


@dataclass(frozen=True)
class Outcome:
    """How a part ended, and what it found.

    Attributes:
        name: of the part.
        status: how it ended.
        seconds: that it took.
        facts: that it found.
        problem: what went wrong, in one line.
        state: of code and machine, as from `state`.
    """

    name: str
    status: Status
    seconds: float = 0.0
    facts: dict[str, Fact] = field(default_factory=dict)
    problem: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `result.json`."""
        with written_whole(folder / _RESULT) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Outcome | None":
        """What `write` wrote; None if there is nothing that can be read."""
        try:
            fields = json.loads((folder / _RESULT).read_text())
            return cls(**fields | {"status": Status(fields["status"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def run_parts(parts: Sequence[Part], where: Where, seconds: float, tell: Callable[[str], None]) -> Iterator[Outcome]:
    """Run parts, or read what they found before.

    Args:
        parts: to run.
        where: device and folder of the results.
        seconds: time limit of all together.
        tell: receives a line when a part begins and ends.

    Yields:
        An outcome for each part, as it ends.
    """
    deadline, now = time.monotonic() + seconds, state(where)
    for part in parts:
        folder = where.results / part.name
        known = Outcome.read(folder)
        if known is None or known.state != now:
            shutil.rmtree(folder, ignore_errors=True)
        elif known.status is Status.DONE:
            tell(f"{part.name}: done before")
            yield known
            continue
        folder.mkdir(parents=True, exist_ok=True)
        limit = min(part.seconds, deadline - time.monotonic())
        if limit < _LEAST_SECONDS:
            outcome = Outcome(part.name, Status.NOT_RUN, state=now)
        else:
            tell(f"{part.name}: at most {limit:.0f} s")
            Outcome(part.name, Status.BEGUN, state=now).write(folder)
            with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as work:
                outcome = replace(_run(part, replace(where, folder=folder, work=Path(work)), limit), state=now)
        outcome.write(folder)
        tell(f"{part.name}: {outcome.status} after {outcome.seconds:.0f} s {outcome.problem}".rstrip())
        yield outcome


def state(where: Where) -> dict[str, Any]:
    """What must be the same for results to count still."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _CODE for path in (ROOT / package).rglob("*") if path.suffix in _SUFFIXES):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": sys.version}
    return {"code": digest.hexdigest(), "cards": cards(), "device": where.device, "dry": where.dry, **versions}


def cards() -> list[str]:
    """GPUs of this machine by NVIDIA's driver, and its version; empty where there is none."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [*map(pynvml.nvmlDeviceGetName, handles), f"driver {pynvml.nvmlSystemGetDriverVersion()}"]
    except pynvml.NVMLError:
        return []


def _run(part: Part, where: Where, limit: float) -> Outcome:
    # A new process must not inherit what this one did with CUDA; without CUDA, it inherits the imports.
    start = multiprocessing.get_context("spawn" if where.device.startswith("cuda") else "fork")
    found = where.folder / _FOUND
    found.unlink(missing_ok=True)
    began = time.monotonic()
    process = start.Process(target=_child, args=(part, where), name=part.name)
    with _terminated_in_order():
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            _kill(process)
    seconds = time.monotonic() - began
    _shorten(where.folder / "log.txt")
    if found.is_file():  # even if it did not manage to end
        content = json.loads(found.read_text())
        found.unlink()
        problem = content["problem"]
        return Outcome(part.name, Status.FAILED if problem else Status.DONE, seconds, content["facts"], problem)
    if late:
        return Outcome(part.name, Status.LATE, seconds)
    return Outcome(part.name, Status.FAILED, seconds, problem=f"the process ended with code {process.exitcode}")


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl+C, so that no part is left running."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _kill(process: Any) -> None:
    """Kill a part with its children, those in sessions of their own too."""
    family = []
    with suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in family:
        with suppress(psutil.Error):
            each.kill()
    process.kill()
    process.join()


def _child(part: Part, where: Where) -> None:
    """Body of a part's process; leaves `found.json` and `result.md`."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(ROOT)
    log = (where.folder / "log.txt").open("w", buffering=1, encoding="utf-8")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    threading.Thread(target=_die_with_parent, daemon=True).start()
    found, problem = Found({}), ""
    try:
        found = part.run(where)
        (where.folder / "result.md").write_text(_page(part, found, where), encoding="utf-8")
    except BaseException as error:
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    with written_whole(where.folder / _FOUND) as partial:
        partial.write_text(json.dumps({"facts": found.facts, "problem": problem}))
    log.flush()
    os._exit(1 if problem else 0)  # threads that go on would keep the process


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _page(part: Part, found: Found, where: Where) -> str:
    from analysis.cost.sweep import machine

    about = machine(where.device) | ({"driver": cards()[-1]} if cards() else {}) | {"date": time.strftime("%Y-%m-%d")}
    lines = [f"# {part.name}", "", *([found.table.strip(), ""] if found.table else [])]
    lines += [f"- {name}: {shown(value)}" for name, value in (found.facts | about).items()]
    return "\n".join(lines) + "\n"


def shown(value: Fact) -> str:
    """A fact as text."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _shorten(log: Path) -> None:
    if log.is_file() and log.stat().st_size > _LOG_BYTES:
        log.write_bytes(b"...\n" + log.read_bytes()[-_LOG_BYTES:])


def limit_size(results: Path, most: int) -> list[str]:
    """Remove the largest files from a folder of results until it is small enough; the names of those removed."""
    files = sorted((path for path in results.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    size, removed = sum(path.stat().st_size for path in files), []
    for path in files:
        if size <= most:
            break
        size -= path.stat().st_size
        removed.append(path.relative_to(results).as_posix())
        path.unlink()
    return removed
