"""The files of a run's folder that others may read while it is written. Trainings and conversions share them.

run.json            what the run is: configuration, prompts and their tokens, structure, parameters
log.jsonl           a line every few steps, and one per evaluation
snapshots/          routing of fixed prompts, see `subllm.runs.routing_snapshot`
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import written_whole

RUN_FILE, LOG_FILE, SNAPSHOTS, FINAL = "run.json", "log.jsonl", "snapshots", "final"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a log, which may still be written: an incomplete last line is left out."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def append_log(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a log; the entry has a `step`."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def forget_after(folder: Path, step: int) -> None:
    """Remove the log lines and snapshots after the step from which a run resumes, which will repeat them."""
    log = folder / LOG_FILE
    if log.exists():
        kept = [entry for entry in read_log(log) if entry["step"] <= step]
        with written_whole(log) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    for path in (folder / SNAPSHOTS).glob("step-*"):
        if int(path.stem.rpartition("-")[2]) > step:
            path.unlink()
