"""The trace of one prompt's way through a SUBLLM: arrays only, saved and loaded without the model, or torch.

A trace is composed of parts. One that was not measured is None; none holds numbers of another run. Letters: T tokens of
the prompt, S levels (row 0 of an array is Level 1), L blocks, N new tokens, D width.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import TraceError

FORMAT = 4
_META = "meta"
UNTOUCHED = "untouched"  # reference of an agreement: the same run without edits


class _Part:
    """A part of a trace: its arrays cannot be written to, and have the shapes that their fields name."""

    def __post_init__(self) -> None:
        letters: dict[str, int] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if "axes" not in entry.metadata or value is None:
                continue
            array = np.asarray(value).view()
            array.flags.writeable = False
            object.__setattr__(self, entry.name, array)
            axes = entry.metadata["axes"]
            expected = tuple(letters.get(letter, size) for letter, size in zip(axes, array.shape, strict=False))
            if array.ndim != len(axes) or array.shape != expected:
                known = ", ".join(f"{letter} = {letters[letter]}" for letter in axes if letter in letters)
                raise TraceError(
                    f"{type(self).__name__}.{entry.name} has shape {array.shape}; it must be ({', '.join(axes)})"
                    f"{f' with {known}' if known else ''}."
                )
            letters |= dict(zip(axes, array.shape, strict=True))

    @property
    def axes(self) -> dict[str, int]:
        """Length of each axis by its letter."""
        found: dict[str, int] = {}
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if "axes" in entry.metadata and value is not None:
                found |= dict(zip(entry.metadata["axes"], value.shape, strict=True))
        return found


def _array(axes: str, **options: Any) -> Any:
    return field(metadata={"axes": axes}, **options)


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
    token_ids: np.ndarray = _array("T")
    starts: np.ndarray = _array("T")
    ends: np.ndarray = _array("T")
    pieces: np.ndarray = _array("T")

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
        scores: (S, T) importance before the threshold; NaN where the token did not reach the router, or it does not score.
        stream_norm: (S, T) L2 norm of the residual stream before the level; NaN where not reached.
        difference_norm: (S, T) L2 norm of f(x) - x, what the level changed; 0 at dropped tokens, NaN where not reached.
        contribution_norm: (S, T) L2 norm of β ⊙ a (f(x) - x), what was added to the stream; 0 and NaN as above.
    """

    routers: np.ndarray = _array("S")
    parents: np.ndarray = _array("S")
    retention_ratios: np.ndarray = _array("S")
    block_levels: np.ndarray = _array("L")
    bypass_scale: np.ndarray = _array("SD")
    thresholds: np.ndarray = _array("S")
    reached: np.ndarray = _array("ST")
    kept: np.ndarray = _array("ST")
    edited: np.ndarray = _array("ST")
    weights: np.ndarray = _array("ST")
    scores: np.ndarray = _array("ST")
    stream_norm: np.ndarray = _array("ST")
    difference_norm: np.ndarray = _array("ST")
    contribution_norm: np.ndarray = _array("ST")

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

    def scores_tokens(self, level: int) -> bool:
        """Whether the router of a level compares scores with a threshold."""
        return not np.isnan(self.thresholds[level - 1])


@dataclass(frozen=True, eq=False)
class Blocks(_Part):
    """What every block did.

    Attributes:
        change: (L, T) L2 norm of what the block added to the token's stream, over the stream's norm; NaN where it did
            not process the token.
        confidence: (L, T) probability of the next token most likely after the block; NaN as above. None if not read off.
    """

    change: np.ndarray = _array("LT")
    confidence: np.ndarray | None = _array("LT", default=None)


@dataclass(frozen=True, eq=False)
class Predictions(_Part):
    """What the model predicts. K most likely next tokens.

    Attributes:
        next_ids: (K,) most likely tokens after the prompt.
        next_probabilities: (K,) of these.
        next_pieces: (K,) readable text of these.
        surprisal: (T,) nats, -log p(token given those before); NaN at the first. None if not measured.
    """

    next_ids: np.ndarray = _array("K")
    next_probabilities: np.ndarray = _array("K")
    next_pieces: np.ndarray = _array("K")
    surprisal: np.ndarray | None = _array("T", default=None)


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
    ids: np.ndarray = _array("N")
    pieces: np.ndarray = _array("N")
    reached: np.ndarray = _array("SN")
    kept: np.ndarray = _array("SN")
    weights: np.ndarray = _array("SN")
    scores: np.ndarray = _array("SN")


@dataclass(frozen=True, eq=False)
class Agreement(_Part):
    """Predictions against those of a reference.

    Attributes:
        reference: "twin" (the LLaMA that it was converted from), "routing off" (its own weights with nothing dropped), or
            "untouched" (the same run without edits).
        surprisal: (T,) of the reference, nats; NaN at the first.
        divergence: (T,) nats, KL divergence of the next-token distribution after the token from the reference's.
        agrees: (T,) True where both find the same next token most likely.
    """

    reference: str
    surprisal: np.ndarray = _array("T")
    divergence: np.ndarray = _array("T")
    agrees: np.ndarray = _array("T")

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
        edits: to the routing, as `analysis.edits` writes them, in order.
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
        continuation: greedy.
        agreement: with a reference.
        costs: time and memory.
    """

    prompt: Prompt
    routing: Routing
    provenance: Provenance
    blocks: Blocks | None = None
    predictions: Predictions | None = None
    continuation: Continuation | None = None
    agreement: Agreement | None = None
    costs: Costs | None = None

    def __post_init__(self) -> None:
        letters: dict[str, int] = {}
        for name, part in self._parts():
            for letter, length in part.axes.items():
                if letters.setdefault(letter, length) != length:
                    raise TraceError(
                        f"The parts of a trace do not fit: {name} has {letter} = {length}, an earlier part has "
                        f"{letters[letter]}."
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
        known = None if self.predictions is None else self.predictions.surprisal
        return float("nan") if known is None else perplexity(known)

    @cached_property
    def run(self) -> str:
        """Names what was run: the same checkpoint, device, dtype, prompt and edits, however much of it is measured yet."""
        total = hashlib.blake2b(json.dumps(asdict(self.provenance)).encode(), digest_size=12)
        total.update(self.prompt.text.encode(errors="surrogatepass"))
        total.update(np.ascontiguousarray(self.prompt.token_ids).tobytes())
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

    def _content(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What is no array, and the arrays under "part.field"."""
        meta: dict[str, Any] = {"format": FORMAT, "provenance": asdict(self.provenance)}
        meta["costs"] = None if self.costs is None else asdict(self.costs)
        arrays = {}
        for name, part in self._parts():
            meta[name] = {}
            for entry in fields(part):  # type: ignore[arg-type]
                value = getattr(part, entry.name)
                if "axes" not in entry.metadata:
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
            with (
                source.open("rb")
                if isinstance(source, Path)
                else nullcontext(source) as stream,  # np.load would leak it
                np.load(stream, allow_pickle=False) as file,
            ):
                meta = json.loads(bytes(file[_META]).decode())
                found = meta["format"]
                if found not in (3, FORMAT):
                    advice = "update the app to open it" if found > FORMAT else "make it again"
                    raise TraceError(f"{name} has trace format {found}; this version reads 3 and {FORMAT}: {advice}.")
                arrays = {key: file[key] for key in file.files if key != _META}
            return _from_format_3(meta, arrays) if found == 3 else _from_content(meta, arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise TraceError(f"{name} is not a readable trace ({error}); save it again.") from error


_PARTS: dict[str, type[_Part]] = {
    "prompt": Prompt,
    "routing": Routing,
    "blocks": Blocks,
    "predictions": Predictions,
    "continuation": Continuation,
    "agreement": Agreement,
}


def perplexity(surprisal: np.ndarray) -> float:
    """Of tokens with these surprisals in nats, NaN left out; NaN without any."""
    known = surprisal[~np.isnan(surprisal)]
    return float(np.exp(known.mean(dtype=np.float64))) if len(known) else float("nan")


def _from_content(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
    parts: dict[str, Any] = {}
    for name, kind in _PARTS.items():
        if name in meta:
            own = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{name}.")}
            parts[name] = kind(**meta[name], **own)
    provenance = Provenance(**(meta["provenance"] | {"edits": tuple(meta["provenance"]["edits"])}))
    costs = meta["costs"] and Costs(**{name: _cost(entry) for name, entry in meta["costs"].items()})
    return Trace(provenance=provenance, costs=costs, **parts)


def _cost(entry: Mapping[str, Any]) -> Cost:
    return Cost(**{**entry, "seconds": tuple(entry["seconds"])})


def _from_format_3(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
    """Levels counted from 0 there, decisions were not recorded, and what was not measured was NaN."""
    from subllm.routing.record import first_format  # noqa: PLC0415 - it needs torch, which today's format does not

    scores, kept = arrays["scores"], arrays["kept"]
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
        provenance=Provenance(**meta["provenance"]),
        blocks=Blocks(arrays["change"], None if np.isnan(confidence).all() else confidence),
        predictions=Predictions(
            arrays["next_ids"],
            arrays["next_probabilities"],
            arrays["next_pieces"],
            arrays["surprisal"] if measured else None,
        ),
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
