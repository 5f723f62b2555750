"""The checkpoints of a run, and whether one has been damaged since it was written.

The last file that goes into a checkpoint is its manifest: size and sha256 of every other file, and what the run is.
Checkpoints of versions that wrote none are checked for files that are missing or cannot be read.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import first_line

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")
_TRAINING = ("model.safetensors", "training_args.bin")
_CONVERSION = ("trained.safetensors", "adapter_config.json", "adapter_model.safetensors", "routing.safetensors")
_INDEX = "model.safetensors.index.json"
_FORMS = {  # how these files are called if there are several
    "model.safetensors": "model*.safetensors", "optimizer.pt": "optimizer*", "rng_state.pth": "rng_state*.pth",
}  # fmt: skip


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, in the order of their steps, damaged ones among them."""
    found = (path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Number of steps after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_whole(out: Path) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is whole, None if there is none; and what is wrong with each later one."""
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(out)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint, damaged
        damaged[checkpoint] = wrong
    return None, damaged


def last_checkpoint(out: Path) -> Path | None:
    """The checkpoint from which the run in a folder resumes: the last one that is whole; None if there is none."""
    return last_whole(out)[0]


def seal(checkpoint: Path, run: dict[str, Any] | None) -> None:
    """Write the manifest of a checkpoint that is otherwise complete.

    Args:
        checkpoint: folder of the checkpoint.
        run: content of `run.json`, which can be made again of it; None if it is not known.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files, "run": run}, indent=1) + "\n")


def run_of(checkpoint: Path) -> dict[str, Any] | None:
    """What the manifest of a whole checkpoint says about its run; None if it has no manifest."""
    if not (checkpoint / MANIFEST).is_file():
        return None
    run: dict[str, Any] | None = _object(checkpoint / MANIFEST).get("run")
    return run


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a file and what it lacks; None if the checkpoint is whole."""
    try:
        return next(_sealed(checkpoint) if (checkpoint / MANIFEST).exists() else _unsealed(checkpoint), None)
    except OSError as error:
        return f"it cannot be read ({error})"


def _sealed(checkpoint: Path) -> Iterator[str]:
    """What differs from the manifest."""
    try:
        files = _object(checkpoint / MANIFEST)["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        yield f"{MANIFEST} cannot be read"
        return
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes, expected {size:,}"
    for name, (_, digest) in expected.items():
        if _digest(checkpoint / name) != digest:
            yield f"{name} is not what was written (its sha256 is another)"


def _unsealed(checkpoint: Path) -> Iterator[str]:
    """What is missing or cannot be read in a checkpoint without a manifest."""
    converted = any((checkpoint / name).exists() for name in _CONVERSION)
    for name in (*(_CONVERSION if converted else _TRAINING), *_STATE):
        if not any(checkpoint.glob(_FORMS.get(name, name))):
            yield f"{name} is missing"
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        wrong = _unreadable(path)
        if wrong:
            yield f"{path.name} cannot be read ({wrong})"
    if (checkpoint / _INDEX).is_file():
        for name in sorted(set(_object(checkpoint / _INDEX).get("weight_map", {}).values())):
            if not (checkpoint / name).is_file():
                yield f"{name} is missing"


def _unreadable(path: Path) -> str | None:
    """Why a file of a kind that checkpoints have cannot be read. Nothing is unpickled."""
    try:
        if path.suffix == ".json":
            _object(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in (".pt", ".pth", ".bin"):  # as torch writes them: archives with a checksum of each member
            with zipfile.ZipFile(path) as archive:
                wrong = archive.testzip()
            return wrong and f"{wrong} in it is damaged"
    except (ValueError, SafetensorError, zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        return first_line(error)
    return None


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
