"""A worker in a process of its own, which `analysis.corpus.pool` starts: shard numbers come in, lines of JSON go out.

The first line on standard input says what to load; each further one is the number of a shard. The process ends when
its input does, or when nobody reads its output any more.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from subllm import SubllmError
from subllm.atomic import is_disk_full
from subllm.errors import DiskFullError

from ..errors import AnalysisError
from .schema import Options
from .worker import FACTS, Worker


def error_entry(error: Exception) -> dict[str, str]:
    """What a worker says of an error that a user can cause or mend.

    Raises:
        Exception: any other error.
    """
    if isinstance(error, SubllmError | AnalysisError | OSError):
        kind = "disk" if isinstance(error, DiskFullError) or is_disk_full(error) else "error"
        return {kind: str(error)}
    raise error


def main() -> None:
    """Serve shards until the input ends."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")  # libraries that print do not get in between
    os.dup2(2, 1)

    def say(entry: dict[str, Any]) -> None:
        said.write(json.dumps(entry) + "\n")
        said.flush()

    task: dict[str, Any] = json.loads(sys.stdin.readline())
    folder = Path(task["folder"])
    try:
        worker = Worker.load(Path(task["checkpoint"]), task["device"], Options(**task["options"]))
        if not (folder / FACTS).is_file():
            worker.facts(task["name"]).write(folder)
        for line in sys.stdin:
            done = worker.read_shard(folder, int(line), lambda tokens: say({"read": tokens}))
            say({"done": done.shard.number})
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        say(error_entry(error))


if __name__ == "__main__":
    main()
