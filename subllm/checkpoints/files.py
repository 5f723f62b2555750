"""The door of a checkpoint's folder: whatever is read from it is checked here first.

| what may be wrong | what happens |
| --- | --- |
| a file is a pipe, a device, or a link that leads out of the folder | it is not opened |
| a file is larger than files of its kind are | it is not read |
| a library raises something of its own about the content | it becomes one `CheckpointError` |

A checkpoint comes from anywhere. Its files are data: no code in it is run but its chat template, which
`subllm.checkpoints.confined` confines.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SubllmError

DENSE_TWIN = "dense_twin"  # subfolder of a checkpoint with the LLaMA that it was converted from
CONFIG = "config.json"
TEMPLATES = "additional_chat_templates"  # subfolder in which transformers looks for chat templates
_LARGEST = {  # bytes of a file by the end of its name; the first that fits counts
    CONFIG: 1 << 20,
    "tokenizer.json": 64 << 20,
    "vocab.json": 64 << 20,
    ".index.json": 8 << 20,
    ".json": 8 << 20,
    ".jinja": 1 << 18,
    ".model": 32 << 20,
    ".txt": 32 << 20,
    ".tiktoken": 32 << 20,
    ".safetensors": 1 << 62,
}
_MOST_FILES = 10_000  # in a folder
_LONGEST = 200  # characters of a value that a message repeats


def place_of(path: Path) -> str:
    """The name of a checkpoint's folder in messages, which do not tell where on this machine it is."""
    name = f"{path.parent.name}/{path.name}" if path.name == DENSE_TWIN else path.name
    return printable(name or str(path))


def printable(name: str) -> str:
    """A name as it can be printed: cut, and without half surrogates and control characters."""
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
    return name if name.isprintable() else ascii(name)[1:-1]


def check_folder(folder: Path) -> None:
    """Check that the files of a checkpoint's folder are what the names of files promise, before a library opens one.

    Raises:
        CheckpointError: if a file is not a regular one, leads out of the folder, or is larger than its kind is.
    """
    for inner in (folder, folder / TEMPLATES):
        try:
            if inner == folder or os.path.isdir(inner):
                _check_entries(folder, inner)
        except OSError as error:
            raise CheckpointError(
                "{folder} cannot be read: {error}", folder=place_of(folder), error=reason(error)
            ) from error


def _check_entries(folder: Path, inner: Path) -> None:
    check_inside(folder, inner)
    with os.scandir(inner) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_FILES:
                raise CheckpointError(
                    "{folder} has more than {most:,} files, so it is not a checkpoint; choose the folder that has the "
                    "checkpoint's config.json.",
                    folder=place_of(folder),
                    most=_MOST_FILES,
                )
            if not os.path.isdir(entry.path) and (largest := _largest(entry.name)) is not None:
                check_inside(folder, inner / entry.name)
                if not os.path.isfile(entry.path):
                    raise _irregular(folder, entry.name)
                size = entry.stat().st_size
                if size > largest:
                    raise CheckpointError(
                        "{name} in {folder} has {size:,} bytes, and at most {most:,} are read of such a file. Copy "
                        "the checkpoint again.",
                        name=printable(entry.name),
                        folder=place_of(folder),
                        size=size,
                        most=largest,
                    )
            elif not os.path.isdir(entry.path) and not os.path.isfile(entry.path):
                raise _irregular(folder, entry.name)


def _largest(name: str) -> int | None:
    return next((most for end, most in _LARGEST.items() if name.endswith(end)), None)


def _irregular(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        "{name} in {folder} is not a regular file (a pipe, a device, or a link to nothing); delete it, or copy the "
        "checkpoint again.",
        name=printable(name),
        folder=place_of(folder),
    )


def check_inside(folder: Path, path: Path) -> None:
    """Check that a path, with its links resolved, is in a checkpoint's folder, or among the blobs of the hub's cache.

    Args:
        folder: of the checkpoint.
        path: a file or folder in it.

    Raises:
        CheckpointError: if it leads elsewhere.
    """
    real, found = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [real]
    if real.parent.name == "snapshots":  # `<repository>/snapshots/<commit>/<file>` links to `<repository>/blobs/<hash>`
        allowed.append(real.parents[1] / "blobs")
    if real.name == DENSE_TWIN and real.parent.parent.name == "snapshots":
        allowed.append(real.parents[2] / "blobs")
    if not any(found.is_relative_to(inside) for inside in allowed):
        raise CheckpointError(
            "{name} in {folder} is a link that leads out of the folder, which is not followed. Put the file itself "
            "there.",
            name=printable(path.name),
            folder=place_of(folder),
        )


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, is no regular file, or is larger than its kind is.
        OSError: if it cannot be opened.
    """
    most = _largest(path.name) or _LARGEST[".json"]
    content = read_start(path, most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a regular file; a pipe is not waited for, and a device not read.

    Args:
        path: the file.
        most: number of bytes.

    Raises:
        ValueError: if it is not a regular file.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        return file.read(most)


@contextmanager
def refusing(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises about a part of a checkpoint into one message.

    Args:
        folder: of the checkpoint.
        what: the part, such as "its tokenizer"; a message of `assets/messages.json`.

    Raises:
        CheckpointError: for any error that is not a `SubllmError`.
    """
    try:
        yield
    except SubllmError as error:
        raise _shortened(error) from error
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise CheckpointError(
            "{folder} cannot be used: {what} cannot be read ({error}). Copy the checkpoint again, or ask whoever made "
            "it.",
            folder=place_of(folder),
            what=what,
            error=reason(error, folder),
        ) from error


def is_of_library(error: BaseException) -> bool:
    """Whether an error says what went wrong: a panic of a library written in Rust does, and is no `Exception`.

    What ends a program or a page is none of these.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException, folder: Path | None = None) -> str:
    """What a library says about an error, in a line, without the place of the folder."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deeply"
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError | AttributeError | TypeError | ZeroDivisionError | AssertionError | IndexError):
        line = f"{type(error).__name__}: {line}"
    for path in (folder, folder.resolve()) if folder is not None else ():
        line = line.replace(f"{path}{os.sep}", "").replace(str(path), path.name)
    return printable(line)


def _shortened(error: SubllmError) -> SubllmError:
    """The same error, whose values are not longer than a message can be."""
    if not error.values or len(str(error)) <= 10 * _LONGEST:
        return error
    values = {
        name: f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value
        for name, value in error.values.items()
    }
    shorter = type(error)(error.message, **values)
    return shorter if len(str(shorter)) <= 10 * _LONGEST else CheckpointError(printable(str(shorter)))
