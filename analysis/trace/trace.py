"""The trace of one prompt's forward pass through a SUBLLM: arrays only, usable without the model and without torch.

A trace is composed of parts (`parts.py`). A part that was not measured is None; no part holds numbers of another run.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from ..errors import TraceError
from . import files
from .arrays import Part
from .parts import (
    Agreement,
    Blocks,
    Continuation,
    Costs,
    Likelihood,
    Predictions,
    Prompt,
    Provenance,
    Routing,
)

LONGEST_NOTE = 4000  # characters


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt through one checkpoint.

    Attributes:
        prompt: the tokenised prompt.
        routing: what every router decided.
        provenance: checkpoint, device, dtype, edits and versions.
        blocks: what every block changed.
        predictions: the most likely next tokens.
        likelihood: surprisal of the prompt.
        continuation: the greedy continuation.
        agreement: predictions compared with those of a reference.
        costs: time and memory, compared with a dense model.
        note: what somebody wrote about the run; no part of it, so that `run` and `digest` are the same without it.

    Raises:
        TraceError: if an axis has different lengths in two parts, or the note is no text or too long.
    """

    prompt: Prompt
    routing: Routing
    provenance: Provenance
    blocks: Blocks | None = None
    predictions: Predictions | None = None
    likelihood: Likelihood | None = None
    continuation: Continuation | None = None
    agreement: Agreement | None = None
    costs: Costs | None = None
    note: str = ""
    in_notebooks: ClassVar[Callable[["Trace"], dict[str, str]] | None] = (
        None  # the reports' view; `analysis` puts it here
    )

    def __post_init__(self) -> None:
        if not isinstance(self.note, str) or len(self.note) > LONGEST_NOTE:
            raise TraceError(f"A note is text of at most {LONGEST_NOTE:,} characters.")
        if not 0 <= self.provenance.answer_from < max(self.num_tokens, 1):
            raise TraceError(
                f"The answer begins at token {self.provenance.answer_from}; there are {self.num_tokens} tokens."
            )
        letters: dict[str, tuple[str, int]] = {}
        for name, part in self._parts():
            for letter, length in part.axes.items():
                first, expected = letters.setdefault(letter, (name, length))
                if length != expected:
                    raise TraceError(
                        f"The parts of a trace do not fit: {name} has {letter} = {length}, {first} has {expected}."
                    )

    def _parts(self) -> Iterator[tuple[str, Part]]:
        for name in files.PARTS:
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What IPython shows."""
        view = type(self).in_notebooks
        return {} if view is None else view(self)

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of the prompt."""
        return len(self.prompt)

    @property
    def perplexity(self) -> float:
        """Perplexity of the prompt; NaN if it was not measured."""
        return float("nan") if self.likelihood is None else self.likelihood.perplexity

    @cached_property
    def subject(self) -> str:
        """Digest of prompt and checkpoint, whatever the edits, the device and the dtype."""
        return self._named(self.provenance.digest, self.provenance.structure)

    @cached_property
    def run(self) -> str:
        """Digest of what was run: checkpoint, device, dtype, prompt and edits, however much of it is measured yet."""
        return self._named(asdict(self.provenance))

    def _named(self, *where: Any) -> str:
        total = hashlib.blake2b(json.dumps([where, self.prompt.text]).encode(), digest_size=12)
        total.update(self.prompt.token_ids.astype(np.int64).tobytes())
        return total.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Digest of the whole trace: equal digests mean that every array, text and measurement is equal."""
        meta, arrays = self._content()
        total = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=12)
        for name, array in sorted(arrays.items()):
            total.update(f"{name} {array.dtype.str} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def completed(self, other: "Trace") -> "Trace":
        """This trace, with the parts and the note that it lacks taken from another trace of the same run.

        Args:
            other: a trace with an equal `run`.
        """
        missing = [name for name in (*files.PARTS, "costs") if getattr(self, name) is None]
        known: dict[str, Any] = {name: getattr(other, name) for name in missing if getattr(other, name) is not None}
        mine, theirs = self.blocks, other.blocks
        if mine is not None and mine.confidence is None and theirs is not None and theirs.confidence is not None:
            known["blocks"] = replace(mine, confidence=theirs.confidence)
        if other.note and not self.note:
            known["note"] = other.note
        return replace(self, **known) if known else self

    def _content(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return files.content_of(dict(self._parts()), self.provenance, self.costs)

    def save(self, target: Path | IO[bytes]) -> None:
        """Write the trace as a compressed .npz file (docs/formats.md) to a path or a binary file."""
        meta, arrays = self._content()
        files.write(target, meta | ({"note": self.note} if self.note else {}), arrays)

    @classmethod
    def load(cls, source: Path | IO[bytes]) -> "Trace":
        """Read a trace from a path or a binary file, in the current format or format 3.

        Nothing in the file is executed.

        Raises:
            TraceError: if it is not a trace, is cut off, contradicts itself, or has a format that is not read.
        """
        return files.read(source, cls)
