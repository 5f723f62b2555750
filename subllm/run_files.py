"""The files of a training run's folder that others read while it is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUN_FILE, LOG_FILE, SNAPSHOTS, FINAL = "run.json", "log.jsonl", "snapshots", "final"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log, also while it is being written: a last line that is not complete is left out.

    Args:
        path: of the log.
    """
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
