"""The trace of one prompt's way through a SUBLLM: arrays only, saved and loaded without the model, or torch.

Letters: T tokens of the prompt, S spans (subsampling modules in order of opening), L blocks, N new tokens, D width.

| array | shape | unit |
| --- | --- | --- |
| `token_ids`, `starts`, `ends` | (T,) | id; characters of the prompt, first and past the last |
| `pieces` | (T,) | readable text of each token |
| `scores` | (S, T) | importance before clamping; NaN where the token did not reach the span |
| `kept` | (S, T) | True where the span's blocks process the token |
| `stream_norm` | (S, T) | L2 norm of the residual stream before the span; NaN as above |
| `difference_norm` | (S, T) | L2 norm of f(x) - x, what the span changed; 0 at dropped tokens |
| `contribution_norm` | (S, T) | L2 norm of β ⊙ a (f(x) - x), what was added to the stream; 0 at dropped tokens |
| `change` | (L, T) | L2 norm of what the block added to the stream, over the stream's norm; NaN where not processed |
| `confidence` | (L, T) | probability of the next token most likely after the block; NaN as above, or if not read off |
| `bypass_scale` | (S, D) | β |
| `block_spans` | (L,) | innermost span around each block, -1 where it runs on all tokens |
| `span_parents` | (S,) | enclosing span, -1 on the full sequence |
| `retention_ratios` | (S,) | nominal share of the parent's tokens kept |
| `surprisal`, `dense_surprisal` | (T,) | nats, -log p(token given those before), SUBLLM and dense model; NaN at first |
| `divergence` | (T,) | nats, KL divergence of the SUBLLM's next-token distribution after the token from the dense one |
| `agrees` | (T,) | True where both find the same next token most likely |
| `next_ids`, `next_probabilities`, `next_pieces` | (10,) | most likely next tokens |
| `new_ids`, `new_pieces` | (N,) | greedy continuation |
| `new_scores` | (S, N) | their importance; NaN where the token did not reach the span |
"""

import hashlib
import json
import zipfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import TraceError

_FORMAT = 3
_META = "meta"


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
    """

    checkpoint: str
    digest: str
    structure: str
    device: str
    dtype: str
    attention: str
    dense: str
    versions: str


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt through one checkpoint; see the module's docstring for the arrays, which cannot be written to.

    Attributes:
        prompt: the text, chat template included.
        continuation: text of the greedy continuation.
        cost: of the SUBLLM, or None where it was not measured.
        dense_cost: of the dense model, or None where it was not measured.
        provenance: checkpoint, device, dtype, versions.
    """

    prompt: str
    continuation: str
    token_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray
    scores: np.ndarray
    kept: np.ndarray
    stream_norm: np.ndarray
    difference_norm: np.ndarray
    contribution_norm: np.ndarray
    change: np.ndarray
    confidence: np.ndarray
    bypass_scale: np.ndarray
    surprisal: np.ndarray
    dense_surprisal: np.ndarray
    divergence: np.ndarray
    agrees: np.ndarray
    block_spans: np.ndarray
    span_parents: np.ndarray
    retention_ratios: np.ndarray
    next_ids: np.ndarray
    next_probabilities: np.ndarray
    next_pieces: np.ndarray
    new_ids: np.ndarray
    new_pieces: np.ndarray
    new_scores: np.ndarray
    provenance: Provenance
    cost: Cost | None = None
    dense_cost: Cost | None = None

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array = np.asarray(getattr(self, name))
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.token_ids)

    @property
    def num_spans(self) -> int:
        """Subsampling modules."""
        return len(self.span_parents)

    @property
    def num_blocks(self) -> int:
        """Blocks of the model."""
        return len(self.block_spans)

    @cached_property
    def present(self) -> np.ndarray:
        """(S, T) True where the token reached the span."""
        return ~np.isnan(self.scores)

    @cached_property
    def dropped(self) -> np.ndarray:
        """(S, T) True where the token reached the span and was not kept."""
        return self.present & ~self.kept

    @cached_property
    def contribution_share(self) -> np.ndarray:
        """(S, T) `contribution_norm` over `stream_norm`; NaN where the token did not reach the span."""
        return self.contribution_norm / np.maximum(self.stream_norm, 1e-12)

    @cached_property
    def weights(self) -> np.ndarray:
        """(S, T) clamp(score, 0, 1) at kept tokens, 0 at all others."""
        return np.where(self.kept, np.clip(np.nan_to_num(self.scores), 0, 1), 0)

    @cached_property
    def processed_share(self) -> np.ndarray:
        """(S, T) share of f(x) in the span's output x + β a (f(x) - x), mean over channels; NaN where not reached."""
        return np.where(self.present, self.weights * self.bypass_scale.mean(1, keepdims=True), np.nan)

    @cached_property
    def retention(self) -> np.ndarray:
        """(S,) share of its parent's tokens that each span kept; NaN where none reached it."""
        reached = self.present.sum(1)
        return np.where(reached, self.kept.sum(1) / np.maximum(reached, 1), np.nan)

    @cached_property
    def processed(self) -> np.ndarray:
        """(L, T) True where the block ran on the token."""
        everywhere = np.ones((1, self.num_tokens), dtype=bool)
        return np.concatenate([self.kept, everywhere])[self.block_spans]  # -1 is the last row

    @cached_property
    def block_tokens(self) -> np.ndarray:
        """(L,) tokens that each block ran on."""
        return self.processed.sum(1)

    @property
    def perplexity(self) -> float:
        """Of the SUBLLM on the prompt; NaN where it was not measured."""
        return _perplexity(self.surprisal)

    @property
    def dense_perplexity(self) -> float:
        """Of the dense model on the prompt; NaN where it was not measured."""
        return _perplexity(self.dense_surprisal)

    @cached_property
    def digest(self) -> str:
        """Names this trace: equal digests mean the same checkpoint, tokens and routing."""
        total = hashlib.blake2b(json.dumps(asdict(self.provenance)).encode(), digest_size=12)
        for array in (self.token_ids, self.scores, self.kept):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def save(self, target: Path | IO[bytes]) -> None:
        """Write the trace as a compressed .npz file.

        Args:
            target: path or binary file.
        """
        meta = {
            "format": _FORMAT,
            "prompt": self.prompt,
            "continuation": self.continuation,
            "provenance": asdict(self.provenance),
            "cost": None if self.cost is None else asdict(self.cost),
            "dense_cost": None if self.dense_cost is None else asdict(self.dense_cost),
        }
        encoded = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        np.savez_compressed(target, allow_pickle=False, **{_META: encoded}, **{n: getattr(self, n) for n in _ARRAYS})

    @classmethod
    def load(cls, source: Path | IO[bytes]) -> "Trace":
        """Read a trace that `save` wrote. Nothing in the file is executed.

        Args:
            source: path or binary file.

        Raises:
            TraceError: if it is not a trace, is cut off, or has another format.
        """
        try:
            with (
                source.open("rb")
                if isinstance(source, Path)
                else nullcontext(source) as stream,  # np.load would leak it
                np.load(stream, allow_pickle=False) as file,
            ):
                meta = json.loads(bytes(file[_META]).decode())
                if meta["format"] != _FORMAT:
                    raise TraceError(f"{source} has trace format {meta['format']}; this version reads {_FORMAT}.")
                arrays = {name: file[name] for name in _ARRAYS}
            return cls(
                prompt=meta["prompt"],
                continuation=meta["continuation"],
                provenance=Provenance(**meta["provenance"]),
                cost=_cost(meta["cost"]),
                dense_cost=_cost(meta["dense_cost"]),
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"{source} is not a readable trace ({error}); save it again.") from error


_ARRAYS = tuple(field.name for field in fields(Trace) if field.type is np.ndarray)


def _perplexity(surprisal: np.ndarray) -> float:
    known = surprisal[~np.isnan(surprisal)]
    return float(np.exp(known.mean(dtype=np.float64))) if len(known) else float("nan")


def _cost(entry: dict[str, Any] | None) -> Cost | None:
    return None if entry is None else Cost(**(entry | {"seconds": tuple(entry["seconds"])}))
