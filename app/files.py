"""What pages read from files, kept until a file changes; a rerun opens no file that has not changed."""

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from analysis.corpus.schema import RUN as CORPUS_FILE
from analysis.corpus.schema import SUMMARY
from analysis.corpus.summary import Summary
from analysis.training.run import RoutingHistory, Run, load_snapshots, read_run, routing_history
from subllm import SubllmConfig
from subllm.checkpoints.config import read_config
from subllm.runs.folder import LOG_FILE, RUN_FILE, SNAPSHOTS
from subllm.runs.routing_snapshot import SUFFIX, RoutingSnapshot

Stamp = tuple[tuple[str, int, int], ...]
_CONFIG = "config.json"


@dataclass(frozen=True, eq=False)
class Recorded:
    """The routing that a training run has recorded.

    Attributes:
        run: run with at least one snapshot.
        snapshots: all of them, in the order of their steps.
        history: statistics of all snapshots.
    """

    run: Run
    snapshots: list[RoutingSnapshot]
    history: RoutingHistory


def stamp(folder: Path, ends: tuple[str, ...]) -> Stamp:
    """Names, sizes and times of files: a value that changes when a file changes. No file is opened.

    Args:
        folder: folder of the files; it may be missing.
        ends: suffixes of the file names that count.
    """
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(ends):
                with suppress(OSError):
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def configuration(folder: Path) -> SubllmConfig:
    """A checkpoint's configuration, which is not to be changed; errors are those of `read_config`."""
    return _configuration(folder, stamp(folder, (_CONFIG,)))


def training_run(folder: Path) -> Run:
    """A run as its files say; errors are those of `analysis.training.run.read_run`."""
    return _run(folder, stamp(folder, (RUN_FILE, LOG_FILE)), snapshots_stamp(folder))


def recorded(folder: Path) -> Recorded:
    """The routing that a run has recorded; errors are those of `read_run` and `load_snapshots`.

    Args:
        folder: of a run with snapshots.
    """
    return _recorded(folder, stamp(folder, (RUN_FILE,)), snapshots_stamp(folder))


def snapshots_stamp(folder: Path) -> Stamp:
    """A value that changes when a training run records another snapshot; see `stamp`."""
    return stamp(folder / SNAPSHOTS, (SUFFIX,))


def corpus_summary(folder: Path) -> Summary:
    """What is known of a corpus result, which is not to be changed; errors are those of `Summary.read`."""
    return _corpus_summary(folder, stamp(folder, (CORPUS_FILE,)), stamp(folder / SUMMARY, (".json", ".parquet")))


@lru_cache(maxsize=32)
def _configuration(folder: Path, _: Stamp) -> SubllmConfig:
    return read_config(folder)


@lru_cache(maxsize=16)
def _run(folder: Path, *_: Stamp) -> Run:
    return read_run(folder)


@lru_cache(maxsize=8)  # all snapshots of a run; those of every router stand side by side
def _recorded(folder: Path, *_: Stamp) -> Recorded:
    run = read_run(folder)
    snapshots = load_snapshots(run)
    return Recorded(run, snapshots, routing_history(run, snapshots))


@lru_cache(maxsize=8)
def _corpus_summary(folder: Path, *_: Stamp) -> Summary:
    return Summary.read(folder)
