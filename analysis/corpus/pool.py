"""A pool of worker processes on this machine. One that is killed is replaced, and its shard is read again."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from subllm.errors import DiskFullError

from ..errors import CorpusError
from .schema import INPUT, Options, name_of
from .shards import read_table

_MOST_DEATHS = 3  # of workers on one shard
_NAMED = 3  # documents at either end of a shard that are named
_WAIT = 0.5  # seconds between two reports when no worker says anything
Told = Callable[[int], None]
"""Called with the number of tokens that workers read since the last call, 0 for none; may raise to stop."""


class _Child:
    """A worker process and the shard that it reads."""

    def __init__(self, task: dict[str, Any], device: str) -> None:
        self.device, self.shard, self.read = device, -1, 0
        self.complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "analysis.corpus.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._rest = b""
        self._write(json.dumps(task | {"device": device}))

    def give(self, shard: int) -> None:
        """Let the worker read a shard."""
        self.shard, self.read = shard, 0
        self._write(str(shard))

    def entries(self) -> list[dict[str, Any]] | None:
        """What the worker said since the last call; None once it has ended."""
        assert self.process.stdout is not None
        read = os.read(self.process.stdout.fileno(), 1 << 16)
        if not read:
            return None
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, *, kill: bool) -> str:
        """End the worker; how it ended, with its last complaint."""
        if kill:
            self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        code = self.process.wait()
        self.complaints.seek(0)
        said = self.complaints.read().decode(errors="replace").strip().splitlines()
        self.complaints.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}" + (f": {said[-1]}" if said else "")

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its output says
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()


def run_pool(
    shards: Sequence[int],
    devices: Sequence[str],
    *,
    checkpoint: Path,
    folder: Path,
    options: Options,
    name: str,
    told: Told,
) -> Iterator[int]:
    """Let worker processes read shards.

    Args:
        shards: numbers of the shards.
        devices: device of each worker.
        checkpoint: folder of the checkpoint.
        folder: of the results.
        options: of the run.
        name: display name of the checkpoint.
        told: receives the progress.

    Yields:
        Numbers of shards that are complete, in the order of their completion.

    Raises:
        CorpusError: if a worker finds a fault that it cannot go on with, or if several died of one shard.
        DiskFullError: if the disk is full.
    """
    task = {"checkpoint": str(checkpoint), "folder": str(folder), "options": asdict(options), "name": name}
    waiting, deaths = deque(shards), Counter[int]()
    children: set[_Child] = set()
    with ExitStack() as stack:
        chosen = stack.enter_context(selectors.DefaultSelector())
        stack.callback(lambda: [child.end(kill=True) for child in children])

        def start(device: str) -> None:
            child = _Child(task, device)
            children.add(child)
            chosen.register(child.process.stdout, selectors.EVENT_READ, child)  # type: ignore[arg-type]
            child.give(waiting.popleft())

        def stop(child: _Child, *, kill: bool) -> str:
            chosen.unregister(child.process.stdout)  # type: ignore[arg-type]
            children.remove(child)
            return child.end(kill=kill)

        for device in devices[: len(shards)]:
            start(device)
        while children:
            told(0)
            for key, _ in chosen.select(_WAIT):
                child: _Child = key.data
                entries = child.entries()
                if entries is None:
                    how = stop(child, kill=True)
                    told(-child.read)
                    deaths[child.shard] += 1
                    if deaths[child.shard] == _MOST_DEATHS:
                        table = read_table(folder / name_of(INPUT, child.shard), ["name"])
                        names = table["name"].to_pylist()
                        few = [*names[:_NAMED], "…", *names[-_NAMED:]]
                        raise CorpusError(
                            "{count} workers ended while they read shard {shard} ({how}). Where memory is short, use "
                            "fewer workers; what was read is kept, and the same command goes on with it. The shard has "
                            "{n:,} documents ({names}); if one of them is the cause, move it away, and read the others "
                            "into another folder.",
                            count=_MOST_DEATHS,
                            shard=child.shard,
                            how=how,
                            n=len(names),
                            names=", ".join(names if len(names) <= 2 * _NAMED else few),
                        )
                    waiting.appendleft(child.shard)
                    start(child.device)
                    continue
                for entry in entries:
                    raise_entry(entry)
                    child.read += entry.get("read", 0)
                    told(entry.get("read", 0))
                    if "done" in entry:
                        yield entry["done"]
                        if waiting:
                            child.give(waiting.popleft())
                        else:
                            stop(child, kill=False)


def raise_entry(entry: dict[str, Any]) -> None:
    """Raise the error that a worker reported, if it is one.

    Raises:
        CorpusError: of any kind but the following.
        DiskFullError: if the disk is full.
    """
    if "disk" in entry:
        raise DiskFullError(entry["disk"])
    if "error" in entry:
        raise CorpusError(entry["error"])
