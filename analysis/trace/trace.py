"""The trace of one prompt's way through a SUBLLM: arrays only, saved and loaded without the model, or torch.

A trace is composed of parts. One that was not measured is None; none holds numbers of another run. Letters: T tokens of
the prompt, S levels (row 0 of an array is Level 1), L blocks, N new tokens, D width.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Annotated, Any, get_origin

import numpy as np

from ..errors import AnalysisError, TraceError

FORMAT = 4
_META = "meta"
_KINDS = {"b": "booleans", "iu": "whole numbers", "f": "floating-point numbers", "U": "text"}  # by numpy's letters
UNTOUCHED = "untouched"  # reference of an agreement: the same run without edits


class _Part:
    """A part of a trace: its arrays cannot be written to, and have the axes and kinds of their annotations."""

    def __post_init__(self) -> None:
        letters: dict[str, int] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value, name = getattr(self, entry.name), f"{type(self).__name__}.{entry.name}"
            if entry.name not in self.arrays():
                if not isinstance(value, str):
                    raise TraceError(f"{name} is {value!r:.40}; it must be text.")
            elif value is not None or entry.default is MISSING:
                array, (axes, kinds) = np.asarray(value), self.arrays()[entry.name]
                array = array.copy() if array.flags.writeable else array  # whoever made it may go on writing to it
                array.flags.writeable = False
                object.__setattr__(self, entry.name, array)
                if array.dtype.kind not in kinds:
                    raise TraceError(f"{name} holds {array.dtype}; it must hold {_KINDS[kinds]}.")
                expected = tuple(letters.get(letter, size) for letter, size in zip(axes, array.shape, strict=False))
                if array.ndim != len(axes) or array.shape != expected:
                    known = ", ".join(f"{letter} = {letters[letter]}" for letter in axes if letter in letters)
                    raise TraceError(
                        f"{name} has shape {array.shape}; it must be ({', '.join(axes)})"
                        f"{f' with {known}' if known else ''}."
                    )
                letters |= dict(zip(axes, array.shape, strict=True))

    @classmethod
    @cache
    def arrays(cls) -> dict[str, tuple[str, str]]:
        """Axes of each array, and which of `_KINDS` it may hold."""
        own: dict[str, Any] = {entry.name: entry.type for entry in fields(cls)}  # type: ignore[arg-type]
        return {name: kind.__metadata__ for name, kind in own.items() if get_origin(kind) is Annotated}

    @property
    def axes(self) -> dict[str, int]:
        """Length of each axis by its letter."""
        found: dict[str, int] = {}
        for name, (axes, _) in self.arrays().items():
            value = getattr(self, name)
            if value is not None:
                found |= dict(zip(axes, value.shape, strict=True))
        return found


@dataclass(frozen=True, eq=False)
class Prompt(_Part):
    """A prompt as the model reads it.

    Attributes:
        text: what was tokenised, chat template included.
        token_ids: (T,) int64.
        starts: (T,) first character of each token in the text.
        ends: (T,) past its last character; equal to the start where a token stands for no text.
        pieces: (T,) readable text of each token.
    """

    text: str
    token_ids: Annotated[np.ndarray, "T", "iu"]
    starts: Annotated[np.ndarray, "T", "iu"]
    ends: Annotated[np.ndarray, "T", "iu"]
    pieces: Annotated[np.ndarray, "T", "U"]

    def __post_init__(self) -> None:
        super().__post_init__()
        outside = (self.starts < 0) | (self.starts > self.ends) | (self.ends > len(self.text))
        if outside.any():
            token = int(outside.argmax())
            raise TraceError(
                f"Token {token} stands at characters {self.starts[token]} to {self.ends[token]}; the text has "
                f"{len(self.text)}."
            )

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, eq=False)
class Routing(_Part):
    """What every router decided and what came of it, as it was recorded in the forward pass.

    Attributes:
        routers: (S,) name of each level's router.
        parents: (S,) level whose tokens the router decides about; 0 for the whole sequence.
        retention_ratios: (S,) nominal share of the parent's tokens kept.
        block_levels: (L,) level whose tokens each block processes; 0 for the whole sequence.
        bypass_scale: (S, D) β.
        thresholds: (S,) that scores were compared with; NaN where the router does not score.
        reached: (S, T) True where the token reached the level's router.
        kept: (S, T) True where the level's blocks process the token.
        edited: (S, T) True where an edit named the token at the level.
        weights: (S, T) a, as used; 0 where nothing was added.
        scores: (S, T) importance before the threshold; NaN where the token did not reach the router, or that does not
            score.
        stream_norm: (S, T) L2 norm of the residual stream before the level; NaN where not reached.
        difference_norm: (S, T) L2 norm of f(x) - x, what the level changed; 0 at dropped tokens, NaN where not reached.
        contribution_norm: (S, T) L2 norm of β ⊙ a (f(x) - x), what was added to the stream; 0 and NaN as above.
    """

    routers: Annotated[np.ndarray, "S", "U"]
    parents: Annotated[np.ndarray, "S", "iu"]
    retention_ratios: Annotated[np.ndarray, "S", "f"]
    block_levels: Annotated[np.ndarray, "L", "iu"]
    bypass_scale: Annotated[np.ndarray, "SD", "f"]
    thresholds: Annotated[np.ndarray, "S", "f"]
    reached: Annotated[np.ndarray, "ST", "b"]
    kept: Annotated[np.ndarray, "ST", "b"]
    edited: Annotated[np.ndarray, "ST", "b"]
    weights: Annotated[np.ndarray, "ST", "f"]
    scores: Annotated[np.ndarray, "ST", "f"]
    stream_norm: Annotated[np.ndarray, "ST", "f"]
    difference_norm: Annotated[np.ndarray, "ST", "f"]
    contribution_norm: Annotated[np.ndarray, "ST", "f"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for level, parent in zip(self.levels, self.parents.tolist(), strict=True):
            if not 0 <= parent < level:
                raise TraceError(f"Level {level} lies in level {parent}; it must be one before it, or 0.")
        for block, level in enumerate(self.block_levels.tolist()):
            if not 0 <= level <= self.num_levels:
                raise TraceError(f"Block {block} is at level {level}; there are 0 to {self.num_levels}.")
        stray = self.kept & ~self.reached
        if stray.any():
            row, token = np.argwhere(stray)[0].tolist()
            raise TraceError(f"Level {row + 1} keeps token {token}, which did not reach it.")

    @property
    def num_levels(self) -> int:
        """S."""
        return len(self.parents)

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self.block_levels)

    @property
    def levels(self) -> range:
        """Numbers of the levels, from 1."""
        return range(1, self.num_levels + 1)

    @cached_property
    def dropped(self) -> np.ndarray:
        """(S, T) True where the token reached the router and was not kept."""
        return self.reached & ~self.kept

    @cached_property
    def contribution_share(self) -> np.ndarray:
        """(S, T) `contribution_norm` over `stream_norm`; NaN where the token did not reach the router."""
        return self.contribution_norm / np.maximum(self.stream_norm, 1e-12)

    @cached_property
    def processed_share(self) -> np.ndarray:
        """(S, T) share of f(x) in the output x + β a (f(x) - x), mean over channels; NaN where not reached."""
        return np.where(self.reached, self.weights * self.bypass_scale.mean(1, keepdims=True), np.nan)

    @cached_property
    def retention(self) -> np.ndarray:
        """(S,) share of the tokens that reached each router that it kept; NaN where none did."""
        reached = self.reached.sum(1)
        return np.where(reached, self.kept.sum(1) / np.maximum(reached, 1), np.nan)

    @cached_property
    def processed(self) -> np.ndarray:
        """(L, T) True where the block ran on the token."""
        everywhere = np.ones((1, self.kept.shape[1]), dtype=bool)
        return np.concatenate([everywhere, self.kept])[self.block_levels]

    @cached_property
    def level_tokens(self) -> np.ndarray:
        """(S + 1,) tokens at each level, the whole sequence first."""
        return np.concatenate([[self.kept.shape[1]], self.kept.sum(1)])

    @cached_property
    def block_tokens(self) -> np.ndarray:
        """(L,) tokens that each block ran on."""
        return self.level_tokens[self.block_levels]

    @property
    def scored(self) -> list[bool]:
        """(S,) whether each level's router scores tokens."""
        return (~np.isnan(self.thresholds)).tolist()

    def scores_tokens(self, level: int) -> bool:
        """Whether the router of a level compares scores with a threshold."""
        return not np.isnan(self.thresholds[level - 1])

    def scores_of(self, level: int) -> np.ndarray:
        """(T,) row of `scores` of a level.

        Raises:
            AnalysisError: if the level's router does not score.
        """
        if not self.scores_tokens(level):
            raise AnalysisError(
                f"Level {level} has no importance scores: its router, {self.routers[level - 1]!s}, does not score "
                "tokens."
            )
        row: np.ndarray = self.scores[level - 1]
        return row


@dataclass(frozen=True, eq=False)
class Blocks(_Part):
    """What every block did.

    Attributes:
        change: (L, T) L2 norm of what the block added to the token's stream, over the stream's norm; NaN where it did
            not process the token.
        confidence: (L, T) probability of the next token most likely after the block; NaN as above. None if not read
            off.
    """

    change: Annotated[np.ndarray, "LT", "f"]
    confidence: Annotated[np.ndarray | None, "LT", "f"] = None


@dataclass(frozen=True, eq=False)
class Predictions(_Part):
    """The K most likely tokens after the prompt.

    Attributes:
        next_ids: (K,) their ids, the most likely first.
        next_probabilities: (K,) of these.
        next_pieces: (K,) readable text of these.
    """

    next_ids: Annotated[np.ndarray, "K", "iu"]
    next_probabilities: Annotated[np.ndarray, "K", "f"]
    next_pieces: Annotated[np.ndarray, "K", "U"]


@dataclass(frozen=True, eq=False)
class Likelihood(_Part):
    """How likely the model finds the prompt itself.

    Attributes:
        surprisal: (T,) nats, -log p(token given those before); NaN at the first.
    """

    surprisal: Annotated[np.ndarray, "T", "f"]

    @property
    def perplexity(self) -> float:
        """Of the prompt; NaN for a prompt of one token."""
        return perplexity(self.surprisal)


@dataclass(frozen=True, eq=False)
class Continuation(_Part):
    """The greedy continuation.

    Attributes:
        text: of all new tokens.
        ids: (N,).
        pieces: (N,) readable text of each.
        reached: (S, N), `kept` (S, N), `weights` (S, N) and `scores` (S, N): as of `Routing`.
    """

    text: str
    ids: Annotated[np.ndarray, "N", "iu"]
    pieces: Annotated[np.ndarray, "N", "U"]
    reached: Annotated[np.ndarray, "SN", "b"]
    kept: Annotated[np.ndarray, "SN", "b"]
    weights: Annotated[np.ndarray, "SN", "f"]
    scores: Annotated[np.ndarray, "SN", "f"]


@dataclass(frozen=True, eq=False)
class Agreement(_Part):
    """Predictions against those of a reference.

    Attributes:
        reference: "twin" (the LLaMA that it was converted from), "routing off" (its own weights with nothing dropped),
            or "untouched" (the same run without edits).
        surprisal: (T,) of the reference, nats; NaN at the first.
        divergence: (T,) nats, KL divergence of the next-token distribution after the token from the reference's.
        agrees: (T,) True where both find the same next token most likely.
    """

    reference: str
    surprisal: Annotated[np.ndarray, "T", "f"]
    divergence: Annotated[np.ndarray, "T", "f"]
    agrees: Annotated[np.ndarray, "T", "b"]

    @property
    def perplexity(self) -> float:
        """Of the reference on the prompt; NaN for a prompt of one token."""
        return perplexity(self.surprisal)


@dataclass(frozen=True)
class Cost:
    """What reading the prompt cost one model, measured on this machine.

    Attributes:
        seconds: of each timed pass over the prompt, in the order run.
        peak_bytes: most memory that tensors took at once during a pass, beyond the weights.
        cache_bytes: keys and values kept for the prompt.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    cache_bytes: int

    @property
    def median_seconds(self) -> float:
        """Median of the timed passes."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Costs:
    """What reading the prompt cost both models.

    Attributes:
        subllm: of the SUBLLM.
        dense: of the dense model that it is compared with.
    """

    subllm: Cost
    dense: Cost


@dataclass(frozen=True)
class Provenance:
    """Where a trace came from.

    Attributes:
        checkpoint: name of the checkpoint.
        digest: sha256 of its configuration and weights.
        structure: of the model.
        device: name of the device.
        dtype: of the computation.
        attention: attention kernel.
        dense: what costs are compared with: "twin" (the LLaMA it was converted from), "routing off" (its own
            weights), or "" for nothing.
        versions: of torch and transformers.
        edits: to the routing, as `analysis.debug.edits` writes them, in order.
    """

    checkpoint: str
    digest: str
    structure: str
    device: str
    dtype: str
    attention: str
    dense: str
    versions: str
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt through one checkpoint; see the module's docstring.

    Attributes:
        prompt: that was read.
        routing: what every router decided.
        provenance: checkpoint, device, dtype, edits, versions.
        blocks: what every block did.
        predictions: what comes next.
        likelihood: of the prompt.
        continuation: greedy.
        agreement: with a reference.
        costs: time and memory.
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

    def __post_init__(self) -> None:
        letters: dict[str, tuple[str, int]] = {}
        for name, part in self._parts():
            for letter, length in part.axes.items():
                first, expected = letters.setdefault(letter, (name, length))
                if length != expected:
                    raise TraceError(
                        f"The parts of a trace do not fit: {name} has {letter} = {length}, {first} has {expected}."
                    )

    def _parts(self) -> Iterator[tuple[str, _Part]]:
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None:
                yield name, part

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def perplexity(self) -> float:
        """Of the SUBLLM on the prompt; NaN where it was not measured."""
        return float("nan") if self.likelihood is None else self.likelihood.perplexity

    @cached_property
    def subject(self) -> str:
        """Names prompt and checkpoint, whatever the edits, the device and the dtype."""
        return self._named(self.provenance.digest, self.provenance.structure)

    @cached_property
    def run(self) -> str:
        """Names what was run: checkpoint, device, dtype, prompt and edits, however much of it is measured yet."""
        return self._named(asdict(self.provenance))

    def _named(self, *where: Any) -> str:
        total = hashlib.blake2b(json.dumps([where, self.prompt.text]).encode(), digest_size=12)
        total.update(self.prompt.token_ids.astype(np.int64).tobytes())
        return total.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Names this trace: equal digests mean that every array, text and measurement is equal."""
        meta, arrays = self._content()
        total = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=12)
        for name, array in sorted(arrays.items()):
            total.update(f"{name} {array.dtype.str} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def completed(self, other: "Trace") -> "Trace":
        """This trace, with the parts that it lacks taken over from another one of the same run.

        Args:
            other: with an equal `run`.
        """
        missing = [name for name in (*_PARTS, "costs") if getattr(self, name) is None]
        known = {name: getattr(other, name) for name in missing if getattr(other, name) is not None}
        mine, theirs = self.blocks, other.blocks
        if mine is not None and mine.confidence is None and theirs is not None and theirs.confidence is not None:
            known["blocks"] = replace(mine, confidence=theirs.confidence)
        return replace(self, **known) if known else self

    def _content(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What is no array, and the arrays under "part.field"."""
        meta: dict[str, Any] = {"format": FORMAT, "provenance": asdict(self.provenance)}
        meta["costs"] = None if self.costs is None else asdict(self.costs)
        arrays = {}
        for name, part in self._parts():
            meta[name] = {}
            for entry in fields(part):  # type: ignore[arg-type]
                value = getattr(part, entry.name)
                if entry.name not in part.arrays():
                    meta[name][entry.name] = value
                elif value is not None:
                    arrays[f"{name}.{entry.name}"] = value
        return meta, arrays

    def save(self, target: Path | IO[bytes]) -> None:
        """Write the trace as a compressed .npz file (docs/formats.md).

        Args:
            target: path or binary file.
        """
        meta, arrays = self._content()
        encoded = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        np.savez_compressed(target, allow_pickle=False, **{_META: encoded}, **arrays)

    @classmethod
    def load(cls, source: Path | IO[bytes]) -> "Trace":
        """Read a trace that `save` wrote, or a version since format 3. Nothing in the file is executed.

        Args:
            source: path or binary file.

        Raises:
            TraceError: if it is not a trace, is cut off, contradicts itself, or has a format that is not read.
        """
        name = source if isinstance(source, Path) else "The file"
        try:
            meta, arrays = _read(source)
            found = meta["format"]
            if found not in (3, FORMAT):
                newer = isinstance(found, int) and found > FORMAT
                raise _RefusedError(
                    f"has trace format {found!r:.20}; this version reads 3 and {FORMAT}: "
                    f"{'update the app to open it' if newer else 'make it again'}."
                )
            return _from_format_3(meta, arrays) if found == 3 else _from_content(meta, arrays)
        except _RefusedError as error:
            raise TraceError(f"{name} {error}") from error
        except TraceError as error:
            raise TraceError(f"{name} is not a whole trace: {error} Save it again.") from error
        except _UNREADABLE as error:
            raise TraceError(f"{name} is not a readable trace ({error}); save it again.") from error


class _RefusedError(TraceError):
    """A whole file that this version does not take."""


_PARTS: dict[str, type[_Part]] = {
    "prompt": Prompt,
    "routing": Routing,
    "blocks": Blocks,
    "predictions": Predictions,
    "likelihood": Likelihood,
    "continuation": Continuation,
    "agreement": Agreement,
}


def perplexity(surprisal: np.ndarray) -> float:
    """Of tokens with these surprisals in nats, NaN left out; NaN without any."""
    known = surprisal[~np.isnan(surprisal)]
    return float(np.exp(known.mean(dtype=np.float64))) if len(known) else float("nan")


_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises, in zipfile, zlib, json and numpy."""


def _read(source: Path | IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is no array, and the arrays."""
    with (
        source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream,  # np.load would leak it
        np.load(stream, allow_pickle=False) as file,
    ):
        meta = json.loads(file[_META].tobytes())
        return meta, {key: file[key] for key in file.files if key != _META}


def _from_content(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
    parts: dict[str, Any] = {}
    unknown = set(arrays)
    for name, kind in _PARTS.items():
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
    return Trace(provenance=_provenance(meta["provenance"]), costs=_costs(meta["costs"]), **parts)


def _provenance(entry: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**entry, "edits": tuple(map(str, entry.get("edits", ())))})


def _costs(entries: Mapping[str, Any] | None) -> Costs | None:
    return None if entries is None else Costs(**{name: _cost(entry) for name, entry in entries.items()})


def _cost(entry: Mapping[str, Any]) -> Cost:
    return Cost(**{**entry, "seconds": tuple(map(float, entry["seconds"]))})


_EDITED_3 = re.compile(
    r"\[(keep|drop|threshold|retention|bypass|dense)\b[^\]]*@[\d*]+\]$"
)  # after the checkpoint's name


def _from_format_3(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
    """Levels counted from 0 there, decisions were not recorded, and what was not measured was NaN."""
    from subllm.routing.record import first_format  # noqa: PLC0415 - it needs torch, which today's format does not

    scores, kept = arrays["scores"], arrays["kept"]
    if _EDITED_3.search(meta["provenance"]["checkpoint"]) or ((np.nan_to_num(scores, nan=-1.0) > 0) != kept).any():
        raise _RefusedError(
            "is a run with edits, of a version that did not record what they changed; make the run again."
        )
    recorded = first_format(scores, kept)
    measured = not np.isnan(arrays["divergence"]).all()
    new = arrays["new_scores"]
    new_kept = np.nan_to_num(new, nan=-1.0) > 0
    known = first_format(new, new_kept)
    confidence = arrays["confidence"]
    costs = [meta["cost"], meta["dense_cost"]]
    norms = {name: arrays[name] for name in ("bypass_scale", "stream_norm", "difference_norm", "contribution_norm")}
    return Trace(
        prompt=Prompt(meta["prompt"], *(arrays[name] for name in ("token_ids", "starts", "ends", "pieces"))),
        routing=Routing(
            routers=np.full(len(kept), "subllm"),
            parents=arrays["span_parents"] + 1,
            retention_ratios=arrays["retention_ratios"],
            block_levels=arrays["block_spans"] + 1,
            kept=kept,
            edited=np.zeros_like(kept),
            scores=scores,
            **recorded,
            **norms,
        ),
        provenance=_provenance(meta["provenance"]),
        blocks=Blocks(arrays["change"], None if np.isnan(confidence).all() else confidence),
        predictions=Predictions(arrays["next_ids"], arrays["next_probabilities"], arrays["next_pieces"]),
        likelihood=Likelihood(arrays["surprisal"]) if measured else None,
        continuation=Continuation(
            meta["continuation"],
            arrays["new_ids"],
            arrays["new_pieces"],
            reached=known["reached"],
            kept=new_kept,
            weights=known["weights"],
            scores=new,
        )
        if len(arrays["new_ids"])
        else None,
        agreement=Agreement(
            meta["provenance"]["dense"], arrays["dense_surprisal"], arrays["divergence"], arrays["agrees"]
        )
        if measured
        else None,
        costs=Costs(*map(_cost, costs)) if all(costs) else None,
    )
