"""The file of a trace: a compressed .npz archive of its arrays, and JSON for the rest (docs/formats.md)."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from ..errors import TraceError
from . import format_3
from .arrays import Part
from .format_3 import RefusedError
from .parts import (
    Agreement,
    Blocks,
    Continuation,
    Cost,
    Costs,
    Likelihood,
    Predictions,
    Prompt,
    Provenance,
    Routing,
)

T = TypeVar("T")

FORMAT = 4
PARTS: dict[str, type[Part]] = {
    "prompt": Prompt,
    "routing": Routing,
    "blocks": Blocks,
    "predictions": Predictions,
    "likelihood": Likelihood,
    "continuation": Continuation,
    "agreement": Agreement,
}
META = "meta"
"""Name of the entry with the JSON."""
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises, in zipfile, zlib, json and numpy."""


def content_of(
    parts: Mapping[str, Part], provenance: Provenance, costs: Costs | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file holds of a run: an object for JSON, and the arrays by "part.field"."""
    meta: dict[str, Any] = {"format": FORMAT, "provenance": asdict(provenance)}
    meta["costs"] = None if costs is None else asdict(costs)
    arrays = {}
    for name, part in parts.items():
        meta[name] = {}
        for entry in fields(part):  # type: ignore[arg-type]
            value = getattr(part, entry.name)
            if entry.name not in part.arrays():
                meta[name][entry.name] = value
            elif value is not None:
                arrays[f"{name}.{entry.name}"] = value
    return meta, arrays


def write(target: Path | IO[bytes], meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the content of a trace."""
    encoded = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(target, allow_pickle=False, **{META: encoded}, **arrays)


def read(source: Path | IO[bytes], make: Callable[..., T]) -> T:
    """Read a trace that `write` wrote, or one of format 3.

    Args:
        source: path or binary file.
        make: constructor of the trace; takes its parts by name.

    Raises:
        TraceError: if the file is not a trace, is cut off, contradicts itself, or has a format that is not read.
    """
    name = source if isinstance(source, Path) else "The file"
    try:
        meta, arrays = _open(source)
        found = meta["format"]
        if found not in (format_3.FORMAT, FORMAT):
            newer = isinstance(found, int) and found > FORMAT
            raise RefusedError(
                f"has trace format {found!r:.20}; this version reads {format_3.FORMAT} and {FORMAT}: "
                f"{'update the app to open it' if newer else 'make it again'}."
            )
        return make(**(format_3.parts_of if found == format_3.FORMAT else _parts_of)(meta, arrays))
    except RefusedError as error:
        raise TraceError(f"{name} {error}") from error
    except TraceError as error:
        raise TraceError(f"{name} is not a whole trace: {error} Save it again.") from error
    except UNREADABLE as error:
        raise TraceError(f"{name} is not a readable trace ({error}); save it again.") from error


def _open(source: Path | IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON object of a file, and its arrays."""
    with (
        source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream,  # np.load would leak it
        np.load(stream, allow_pickle=False) as file,
    ):
        meta = json.loads(file[META].tobytes())
        return meta, {key: file[key] for key in file.files if key != META}


def _parts_of(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parts of a trace by name."""
    parts: dict[str, Any] = {}
    unknown = set(arrays)
    for name, kind in PARTS.items():
        if name not in meta:
            continue
        own = {field: arrays[f"{name}.{field}"] for field in kind.arrays() if f"{name}.{field}" in arrays}
        for entry in fields(kind):  # type: ignore[arg-type]
            if entry.name in kind.arrays() and entry.name not in own and entry.default is MISSING:
                raise TraceError(f"It lacks the array {name}.{entry.name}.")
        unknown -= {f"{name}.{field}" for field in own}
        parts[name] = kind(**meta[name], **own)
    if unknown:
        raise TraceError(f"None of its parts has the array {min(unknown)!r:.80}.")
    for name in ("prompt", "routing"):
        if name not in parts:
            raise TraceError(f"It lacks the part {name}.")
    known = {"provenance": Provenance.from_json(meta["provenance"]), "costs": _costs(meta["costs"])}
    return parts | known | {"note": meta.get("note", "")}


def _costs(entries: Mapping[str, Any] | None) -> Costs | None:
    return None if entries is None else Costs(**{name: Cost.from_json(entry) for name, entry in entries.items()})
