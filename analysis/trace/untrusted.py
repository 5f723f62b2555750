"""Traces from strangers: a file is measured before it is unpacked, and what is in it is checked before it is shown."""

import zipfile
from dataclasses import fields
from typing import IO

import numpy as np
from numpy.lib import format as npy

from subllm.errors import first_line

from ..errors import AnalysisError
from .files import META, UNREADABLE
from .format_3 import RefusedError
from .parts import UNTOUCHED, Routing
from .trace import Trace

LARGEST = 128 << 20  # bytes of all arrays and texts
_LARGEST_META = 4 << 20  # bytes of JSON, which takes almost thirty times as much when it is read
_MOST = {"S": 512, "L": 2048, "N": 8192, "K": 1024, "D": 1 << 17}  # of an axis; T is the caller's
_MOST_ENTRIES = 100
_MOST_CHARACTERS = 1 << 20
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_trace(file: IO[bytes], most_tokens: int) -> Trace:
    """Read a trace from a file of unknown origin.

    Args:
        file: a binary file that can be read anywhere.
        most_tokens: longest prompt.

    Raises:
        AnalysisError: if it is no trace, is larger than what is shown here, or says what no trace says.
    """
    try:
        _check_sizes(file)
        file.seek(0)
        trace = Trace.load(file)
        _check_axes(trace, most_tokens)
        _check_content(trace)
    except (AnalysisError, *UNREADABLE) as error:
        if getattr(error, "values", None):  # it is too large, and says so
            raise
        if isinstance(error.__cause__, RefusedError):
            raise AnalysisError(
                "Another version of the app saved this run ({words}).", words=first_line(error)
            ) from error
        raise AnalysisError(
            "This is not a run saved by this app or by subllm trace ({words}).", words=first_line(error)
        ) from error
    return trace


def _check_sizes(file: IO[bytes]) -> None:
    """See that a file unpacks to what it says, and that this is not too much; only headers are unpacked for it."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > LARGEST:
            raise AnalysisError(
                "The file unpacks to {size:,.0f} MB; at most {most:,.0f} MB are opened here.",
                size=size / 2**20,
                most=LARGEST / 2**20,
            )
        names = {entry.filename for entry in entries}
        if len(entries) > _MOST_ENTRIES or len(names) < len(entries):
            raise ValueError(f"it has {len(entries):,} entries with {len(names):,} names")
        for entry in entries:
            if entry.filename.removesuffix(".npy") == META and entry.file_size > _LARGEST_META:
                raise ValueError(f"{entry.filename} has {entry.file_size:,} bytes; at most {_LARGEST_META:,} are read")
            with archive.open(entry) as stream:
                version = npy.read_magic(stream)
                if version not in _READERS:
                    raise ValueError(f"{entry.filename!r:.80} is an array of the version {version}")
                shape, _, dtype = _READERS[version](stream)
                if stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) != entry.file_size:
                    raise ValueError(f"{entry.filename!r:.80} does not have the size that it says")


def _check_axes(trace: Trace, most_tokens: int) -> None:
    if trace.num_tokens > most_tokens:
        raise AnalysisError(
            "The run has {tokens:,} tokens; at most {most:,} are shown here.",
            tokens=trace.num_tokens,
            most=most_tokens,
        )
    for entry in fields(trace):
        for letter, length in getattr(getattr(trace, entry.name), "axes", {}).items():
            if length > _MOST.get(letter, length):
                raise ValueError(f"{letter} is {length:,} in its {entry.name}, and may be at most {_MOST[letter]:,}")


def _check_content(trace: Trace) -> None:
    """See that a trace says what can be recorded."""
    routing, where, predictions, new = trace.routing, trace.provenance, trace.predictions, trace.continuation
    if not trace.num_tokens or not routing.num_blocks:
        raise ValueError("it has no tokens, or no blocks")
    if not ((routing.site_blocks >= -1) & (routing.site_blocks < routing.num_blocks)).all():
        raise ValueError("a level is in a block that is not there")
    _check_reached(routing)
    if where.dense not in ("", "twin", "routing off"):
        raise ValueError(f"its dense model is {where.dense!r:.40}")
    costs = trace.costs
    if costs is not None and not (where.dense and costs.dense.peak_bytes and costs.dense.cache_bytes):
        raise ValueError("its costs are compared with no dense model, or with one that takes no memory")
    if trace.agreement is not None and trace.agreement.reference not in ("twin", "routing off", UNTOUCHED):
        raise ValueError(f"its reference is {trace.agreement.reference!r:.40}")
    if predictions is not None and not len(predictions.next_ids):
        raise ValueError("it has no next token")
    texts = [trace.prompt.text, *trace.prompt.pieces.tolist(), *routing.routers.tolist(), *where.edits, trace.note]
    texts += [value for entry in fields(where) if isinstance(value := getattr(where, entry.name), str)]
    texts += [] if predictions is None else predictions.next_pieces.tolist()
    texts += [] if new is None else [new.text, *new.pieces.tolist()]
    text = "".join(texts)
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"its texts have {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read")
    text.encode()  # fails where there is half a character


def _check_reached(routing: Routing) -> None:
    """See that the tokens that reach a level are those that the level around it keeps; all, where there is none."""
    for level, parent in zip(routing.levels, routing.parents.tolist(), strict=True):
        if not np.array_equal(routing.reached[level - 1], routing.kept[parent - 1] | (parent == 0)):
            raise ValueError(f"other tokens reach Level {level} than those that level {parent} keeps")
