"""The files of a run's folder that others may read while it is written. Trainings and conversions share them.

run.json            what the run is: configuration, prompts and their tokens, structure, parameters
log.jsonl           a line every few steps, and one per evaluation
snapshots/          routing of fixed prompts, see `subllm.runs.routing_snapshot`
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import append_whole, written_whole
from ..checkpoints.files import read_json
from ..errors import DataError

RUN_FILE, LOG_FILE, SNAPSHOTS, FINAL = "run.json", "log.jsonl", "snapshots", "final"
_SNAPSHOT = re.compile(r"step-(\d+)\.\w+")

Entry = dict[str, Any]


def say(line: str) -> None:
    """Say something on standard error, once for all processes of a run."""
    if not int(os.environ.get("RANK", "0")):
        tqdm.write(line, file=sys.stderr)


def read_about(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        DataError: if the file is no JSON object with a `config`.
        OSError: if it cannot be opened.
    """
    path = folder / RUN_FILE
    try:
        found = read_json(path)
    except ValueError as error:
        raise DataError("{path} is damaged: {error}", path=path, error=error) from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise DataError("{path} is damaged: {error}", path=path, error="it has no configuration")
    return found


def read_log(path: Path, damaged: Callable[[int, str], None] = lambda number, wrong: None) -> Iterator[Entry]:
    """Read the lines of a log, which may still be written: an incomplete last line is left out.

    Args:
        path: path of the log.
        damaged: called with the number of every line that is no entry, from 1, and what is wrong; it is left out.

    Yields:
        Entries: numbers by name, `step` among them.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _entry(line)
            except ValueError as error:
                damaged(number, str(error))


def _entry(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    wrong = [name for name, value in entry.items() if not isinstance(value, (int, float)) or isinstance(value, bool)]
    if wrong:
        raise ValueError(f"its {wrong[0]} is no number")
    if not isinstance(entry.get("step"), int):
        raise ValueError("it has no step")
    return entry


def append_log(path: Path, entry: Entry) -> None:
    """Add a line to a log; the entry has a `step`."""
    append_whole(path, json.dumps(entry))


def go_back(folder: Path, step: int, known: Sequence[Entry]) -> None:
    """Bring log and snapshots to the step from which a run resumes.

    What comes after the step is removed: the run will repeat it. Damaged lines are left out, and those of `known` that
    the log lacks are put in; both is said.

    Args:
        folder: folder of the run.
        step: step from which the run resumes.
        known: entries of the log up to the step, as the checkpoint has them.
    """
    log = folder / LOG_FILE
    damaged: list[tuple[int, str]] = []
    found = list(read_log(log, lambda *line: damaged.append(line))) if log.exists() else []
    kept = [entry for entry in found if entry["step"] <= step]
    there = {_key(entry) for entry in kept}
    lacking = list({_key(entry): entry for entry in known if _key(entry) not in there}.values())
    if damaged or lacking:
        line, why = damaged[0] if damaged else (0, "")
        wrong = f"{_lines(len(damaged))} damaged, the first is line {line} ({why}); " if damaged else ""
        say(
            f"{log}: {wrong}{_lines(len(lacking))} put back from the checkpoint of step {step:,}, without the speed; "
            f"{_lines(len(kept))} kept."
        )
    if log.exists() or lacking:
        with written_whole(log) as partial:
            lines = sorted([*kept, *lacking], key=_key)
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    for path in (folder / SNAPSHOTS).glob("step-*"):
        name = _SNAPSHOT.fullmatch(path.name)
        if name and int(name[1]) > step:
            path.unlink()


def _key(entry: Entry) -> tuple[int, bool]:
    """What tells the lines of a log apart, and orders them: an evaluation follows the step."""
    return entry["step"], "eval_loss" in entry


def _lines(count: int) -> str:
    return f"{count:,} line{'' if count == 1 else 's'}"
