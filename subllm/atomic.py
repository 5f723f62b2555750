"""Writing files and folders that nobody sees half-written, also when the disk is full or the process is killed."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFullError, SubllmError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = (
    *map(os.strerror, _FULL),
    "unexpected pos", "PytorchStreamWriter failed writing file", "file write failed", "iostream error",  # torch.save
)  # fmt: skip

_BACK = 1 << 16  # bytes of a file that are looked at together


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which gets its name `path` once the block ends.

    If the block raises, what it wrote is removed; so are remains of an earlier process that was killed.
    A file at `path` is replaced; a folder that holds files is not.

    Args:
        path: of the file or folder.
        shared: whether several processes may write it at the same time. Each then has a temporary path of its own;
            the last one stays, and remains of killed processes are for `remove_partials`.
    """
    own = f".{secrets.token_hex(8)}" if shared else ""
    partial = path.with_name(f".{path.name}{own}.partial")
    _remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left of files in a folder; nobody may write to it at the moment."""
    for partial in folder.glob(".*.partial"):
        _remove(partial)


@contextmanager
def added_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files and folders move into `folder` once the block ends.

    They replace those of the same name; everything else in `folder` stays. If the block raises, all is as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".partial"
    _remove(partial)
    try:
        partial.mkdir()
        yield partial
        for entry in sorted(partial.iterdir()):
            if entry.is_dir():
                _remove(folder / entry.name)
            os.replace(entry, folder / entry.name)
    finally:
        _remove(partial)


def append_whole(path: Path, line: str) -> None:
    """Append a line to a file; if it cannot be written as a whole, the file stays as it was."""
    with path.open("ab", buffering=0) as file:
        before, rest = file.tell(), f"{line}\n".encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            os.ftruncate(file.fileno(), before)
            raise


def drop_incomplete_line(path: Path) -> None:
    """Remove what follows the last line break of a file: a line that a killed process could not complete."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - _BACK, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                start += found + 1
                break
            end = start
        else:
            start = 0
        file.truncate(start)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, a full quota or the largest size of a file caused an error.

    Libraries turn such an `OSError` into errors of their own, so the words and what was raised before count as well.
    """
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _FULL or any(words in str(seen) for words in _WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _nothing() -> str:
    return "nothing was left half-written"


@contextmanager
def full_disk_reported(place: Path, kept: Callable[[], str] = _nothing) -> Iterator[None]:
    """Turn errors that a full disk causes into one that says so.

    Args:
        place: file or folder that is written.
        kept: called when the disk is full; returns what is there, to be said.

    Raises:
        DiskFullError: if the disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SubllmError) or not is_disk_full(error):
            raise
        whole = kept()
        there = next(each for each in (place, *place.absolute().parents) if each.exists())
        raise DiskFullError(
            f"The disk of {place} is full ({shutil.disk_usage(there).free / 1e6:,.1f} MB free); {whole}. Free some "
            "space and run the command again."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
