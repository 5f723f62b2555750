"""Writing files and folders that nobody sees half-written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to, which gets that name once the block ends.

    Nothing is left of it if the block raises, and what an earlier process left there when it was killed is removed.
    A file at `path` is replaced; a folder there is not.
    """
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
