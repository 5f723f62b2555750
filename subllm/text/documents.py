"""Documents that can be drawn at random; their text lies on disk, so it never has to fit in memory."""

import mmap
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from ..atomic import full_disk_reported
from .sources import is_held_out, read_pieces


class _Part(Sequence[str]):
    """Documents of one source that are held out, or that are not: slices of a file."""

    def __init__(self) -> None:
        self.starts, self.stops = array("q"), array("q")
        self.file: mmap.mmap

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.file[self.starts[index] : self.stops[index]].decode()


class Documents:
    """Documents by source, kept in a temporary file without a name.

    A document of more than a million characters counts as several, as `subllm.text.sources.read_pieces` cuts it.

    Args:
        paths: what `subllm.text.sources.read_pieces` reads.

    Raises:
        DataError: if something does not exist or is not text.
        DiskFullError: if the disk for temporary files is full; TMPDIR names another.
    """

    def __init__(self, paths: Iterable[Path | str]) -> None:
        parts: dict[tuple[str, bool], _Part] = {}
        with full_disk_reported(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
            for piece in read_pieces(paths):
                part = parts.setdefault((piece.source, is_held_out(piece.text)), _Part())
                part.starts.append(file.tell())
                file.write(piece.text.encode())
                part.stops.append(file.tell())
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for part in parts.values():
            part.file = mapped
        self._parts = sorted(parts.items(), key=lambda entry: entry[0])

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def sources(self, held_out: bool) -> list[Sequence[str]]:
        """Documents of each source that has any, in the order of the sources' names.

        Args:
            held_out: take the documents that are held out; else the others.
        """
        return [part for (_, is_out), part in self._parts if is_out == held_out]
