"""The parts that a trace is made of: what was read, what the routers decided, what came of it and what it cost.

Letters: T tokens of the prompt, S levels (row 0 of an array is Level 1), L blocks, N new tokens, K next tokens, D model
width. A level is a place where a router decides: a bracket pair of the structure, or a part of a light/heavy block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from ..errors import AnalysisError, TraceError
from .arrays import Part

SITE_KINDS = ("level", "query", "key_value", "mlp")  # a bracket pair, or a part of a light/heavy block
_PROVENANCE: dict[str, type] = {"edits": tuple, "predictor": bool, "answer_from": int}  # its fields that are no text
UNTOUCHED = "untouched"  # reference of an agreement: the same run without edits


def perplexity(surprisal: np.ndarray) -> float:
    """Perplexity of tokens with these surprisals in nats; NaN entries are left out, and without any it is NaN."""
    known = surprisal[~np.isnan(surprisal)]
    return float(np.exp(known.mean(dtype=np.float64))) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Prompt(Part):
    """A prompt as the model reads it.

    Attributes:
        text: the text that was tokenised, including the chat template.
        token_ids: (T,) ids.
        starts: (T,) index of each token's first character in the text.
        ends: (T,) index after its last character; equal to the start where a token stands for no text.
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
class Routing(Part):
    """What every router decided and what its level added, as the forward pass recorded it.

    Attributes:
        routers: (S,) name of each level's router.
        parents: (S,) level whose tokens the router decides about; 0 is the whole sequence.
        retention_ratios: (S,) nominal share of those tokens that is kept.
        block_levels: (L,) level whose tokens each block processes; 0 is the whole sequence.
        bypass_scale: (S, D) β; NaN where the level has no bypass.
        thresholds: (S,) threshold that the scores were compared with; NaN where the router does not score.
        reached: (S, T) True where the token reached the level's router.
        kept: (S, T) True where the level's blocks process the token.
        edited: (S, T) True where an edit named the token at the level.
        weights: (S, T) the weight a that was used; 0 where nothing was added. A merging level adds to every token that
            reached it.
        scores: (S, T) importance score; NaN where the token did not reach the router, or the router does not score.
        stream_norm: (S, T) L2 norm of the residual stream before the level; NaN where the router was not reached.
        difference_norm: (S, T) L2 norm of f(x) - x, the change by the blocks; 0 at dropped tokens, NaN as above. At a
            merging level f(x) is the result of the last group that was complete.
        contribution_norm: (S, T) L2 norm of β ⊙ a (f(x) - x), which was added to the stream (without a bypass,
            a (f(x) - x)); 0 and NaN as above.
        site_kinds: (S,) where each level's router decides, one of `SITE_KINDS`; by default a bracket pair.
        site_blocks: (S,) block that such a part belongs to; -1 for bracket pairs, and by default.
        strides: (S,) number of tokens that a merging router puts into one group; 1 for all others, and by default.
        work: (L, T) share of a dense block's operations that the block spent on the token, 0 to 1, products of queries
            and keys apart; by default 1 where it processed the token.
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
    site_kinds: Annotated[np.ndarray, "S", "U"] = None  # type: ignore[assignment] # `__post_init__` puts defaults
    site_blocks: Annotated[np.ndarray, "S", "iu"] = None  # type: ignore[assignment]
    strides: Annotated[np.ndarray, "S", "iu"] = None  # type: ignore[assignment]
    work: Annotated[np.ndarray, "LT", "f"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        for level, parent in zip(self.levels, self.parents.tolist(), strict=True):
            if not 0 <= parent < level:
                raise TraceError(f"Level {level} lies in level {parent}; that must be a lower level, or 0.")
        for block, level in enumerate(self.block_levels.tolist()):
            if not 0 <= level <= self.num_levels:
                raise TraceError(f"Block {block} is at level {level}; there are 0 to {self.num_levels}.")
        stray = self.kept & ~self.reached
        if stray.any():
            row, token = np.argwhere(stray)[0].tolist()
            raise TraceError(f"Level {row + 1} keeps token {token}, which did not reach it.")
        self._complete()
        for level, kind, stride in zip(self.levels, self.site_kinds.tolist(), self.strides.tolist(), strict=True):
            if kind not in SITE_KINDS:
                raise TraceError(f"Level {level} is of the kind {kind!r:.40}; there are {', '.join(SITE_KINDS)}.")
            if stride < 1:
                raise TraceError(f"Level {level} merges groups of {stride} tokens; a group has at least 1.")

    def _complete(self) -> None:
        """Put defaults in place of the fields that older files lack."""
        defaults = {
            "site_kinds": lambda: np.full(self.num_levels, "level"),
            "site_blocks": lambda: np.full(self.num_levels, -1),
            "strides": lambda: np.ones(self.num_levels, dtype=np.int64),
            "work": lambda: self.processed.astype(np.float16),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                array = default()
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    @property
    def num_levels(self) -> int:
        """S, the number of levels."""
        return len(self.parents)

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return len(self.block_levels)

    @property
    def levels(self) -> range:
        """Numbers of the levels, from 1."""
        return range(1, self.num_levels + 1)

    @property
    def merges(self) -> np.ndarray:
        """(S,) True where the level's router merges tokens into groups."""
        found: np.ndarray = self.strides > 1
        return found

    @cached_property
    def merged(self) -> np.ndarray:
        """(S, T) True where the token is in the group of another token, or in the open group at the end without one."""
        return self.reached & ~self.kept & self.merges[:, None]

    @cached_property
    def dropped(self) -> np.ndarray:
        """(S, T) True where the token reached the router and was neither kept nor merged."""
        return self.reached & ~self.kept & ~self.merges[:, None]

    @cached_property
    def merged_into(self) -> np.ndarray:
        """(S, T) token that carries the group of each token through a merging level.

        -1 where no carrier has followed yet, where the token did not reach the level, and at levels that do not merge.
        """
        behind = self.kept.shape[1]
        carriers = np.where(self.kept & self.merges[:, None], np.arange(behind), behind)
        following = np.minimum.accumulate(carriers[:, ::-1], axis=1)[:, ::-1]
        return np.where(self.reached & (following < behind), following, -1)

    @cached_property
    def updated_from(self) -> np.ndarray:
        """(S, T) token whose group's result a merging level added to each token: the last carrier so far; else -1."""
        carriers = np.where(self.kept & self.merges[:, None], np.arange(self.kept.shape[1]), -1)
        return np.where(self.reached, np.maximum.accumulate(carriers, axis=1), -1)

    @cached_property
    def contribution_share(self) -> np.ndarray:
        """(S, T) `contribution_norm` over `stream_norm`; NaN where the token did not reach the router."""
        return self.contribution_norm / np.maximum(self.stream_norm, 1e-12)

    @cached_property
    def processed_share(self) -> np.ndarray:
        """(S, T) share of f(x) in the output x + β a (f(x) - x), mean over channels; NaN where not reached.

        Without a bypass it is the weight, which may be negative or above 1.
        """
        scale = np.where(self.bypassed, self.bypass_scale.mean(1), 1)
        return np.where(self.reached, self.weights * scale[:, None], np.nan)

    @property
    def bypassed(self) -> list[bool]:
        """(S,) whether each level has a bypass."""
        return (~np.isnan(self.bypass_scale).any(1)).tolist()

    @cached_property
    def retention(self) -> np.ndarray:
        """(S,) share that each router kept of the tokens that reached it; NaN where none did."""
        reached = self.reached.sum(1)
        return np.where(reached, self.kept.sum(1) / np.maximum(reached, 1), np.nan)

    @cached_property
    def processed(self) -> np.ndarray:
        """(L, T) True where the block ran on the token."""
        everywhere = np.ones((1, self.kept.shape[1]), dtype=bool)
        return np.concatenate([everywhere, self.kept])[self.block_levels]

    @cached_property
    def level_tokens(self) -> np.ndarray:
        """(S + 1,) number of tokens at each level, the whole sequence first."""
        return np.concatenate([[self.kept.shape[1]], self.kept.sum(1)])

    @cached_property
    def block_tokens(self) -> np.ndarray:
        """(L,) number of tokens that each block ran on."""
        return self.level_tokens[self.block_levels]

    @property
    def scored(self) -> list[bool]:
        """(S,) whether each level's router scores tokens."""
        return (~np.isnan(self.thresholds)).tolist()

    def scores_tokens(self, level: int) -> bool:
        """Whether the router of a level compares scores with a threshold."""
        return not np.isnan(self.thresholds[level - 1])

    def scores_of(self, level: int) -> np.ndarray:
        """(T,) importance scores at a level.

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
class Blocks(Part):
    """What every block changed.

    Attributes:
        change: (L, T) L2 norm of what the block added to the token's stream, over the stream's norm; NaN where the
            block did not process the token.
        confidence: (L, T) probability of the most likely next token by the logit lens after the block; NaN as above.
            None if the lens was not run.
    """

    change: Annotated[np.ndarray, "LT", "f"]
    confidence: Annotated[np.ndarray | None, "LT", "f"] = None


@dataclass(frozen=True, eq=False)
class Predictions(Part):
    """The K most likely tokens after the prompt.

    Attributes:
        next_ids: (K,) ids, the most likely first.
        next_probabilities: (K,) probabilities.
        next_pieces: (K,) readable text of each.
    """

    next_ids: Annotated[np.ndarray, "K", "iu"]
    next_probabilities: Annotated[np.ndarray, "K", "f"]
    next_pieces: Annotated[np.ndarray, "K", "U"]


@dataclass(frozen=True, eq=False)
class Likelihood(Part):
    """The probability that the model assigns to the prompt itself.

    Attributes:
        surprisal: (T,) nats, -log p(token given those before); NaN at the first.
    """

    surprisal: Annotated[np.ndarray, "T", "f"]

    @property
    def perplexity(self) -> float:
        """Perplexity of the prompt; NaN for a prompt of one token."""
        return perplexity(self.surprisal)


@dataclass(frozen=True, eq=False)
class Continuation(Part):
    """The greedy continuation.

    Attributes:
        text: text of all new tokens.
        ids: (N,) ids of the new tokens.
        pieces: (N,) readable text of each.
        reached: (S, N) as in `Routing`; so are the next three.
        kept: (S, N).
        weights: (S, N).
        scores: (S, N).
    """

    text: str
    ids: Annotated[np.ndarray, "N", "iu"]
    pieces: Annotated[np.ndarray, "N", "U"]
    reached: Annotated[np.ndarray, "SN", "b"]
    kept: Annotated[np.ndarray, "SN", "b"]
    weights: Annotated[np.ndarray, "SN", "f"]
    scores: Annotated[np.ndarray, "SN", "f"]


@dataclass(frozen=True, eq=False)
class Agreement(Part):
    """Next-token predictions compared with those of a reference.

    Attributes:
        reference: "twin" (the LLaMA in its folder), "routing off" (the model's own weights with
            nothing dropped), or "untouched" (the same run without edits).
        surprisal: (T,) surprisal of the prompt under the reference, nats; NaN at the first token.
        divergence: (T,) KL divergence from the reference's next-token distribution after each token, nats.
        agrees: (T,) True where both models rank the same next token first.
    """

    reference: str
    surprisal: Annotated[np.ndarray, "T", "f"]
    divergence: Annotated[np.ndarray, "T", "f"]
    agrees: Annotated[np.ndarray, "T", "b"]

    @property
    def perplexity(self) -> float:
        """Perplexity of the prompt under the reference; NaN for a prompt of one token."""
        return perplexity(self.surprisal)


@dataclass(frozen=True)
class Cost:
    """Measured cost of one model's prefill of the prompt.

    Attributes:
        seconds: time of each timed pass over the prompt, in the order run.
        peak_bytes: peak memory of tensors during a pass, without the weights.
        cache_bytes: size of the keys and values of the prompt.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    cache_bytes: int

    def __post_init__(self) -> None:
        sizes = (self.peak_bytes, self.cache_bytes)
        if not self.seconds or not all(0 < each < np.inf for each in self.seconds):
            raise TraceError(f"The times of a cost are {self.seconds!r:.80}; there must be some, all positive.")
        if not all(isinstance(size, int) and 0 <= size < 2**63 for size in sizes):
            raise TraceError(f"The sizes of a cost are {sizes!r:.80}; they must be numbers of bytes.")

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Cost":
        """Read what `dataclasses.asdict` made, after a way through JSON."""
        return cls(**{**entry, "seconds": tuple(map(float, entry["seconds"]))})

    @property
    def median_seconds(self) -> float:
        """Median of the timed passes."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Costs:
    """Measured cost of the prefill, for the SUBLLM and for the dense model that it is compared with."""

    subllm: Cost
    dense: Cost

    @property
    def passes(self) -> int:
        """Timed passes of each model; the fewer, if they differ."""
        return min(len(self.subllm.seconds), len(self.dense.seconds))


@dataclass(frozen=True)
class Provenance:
    """The checkpoint, machine and settings that a trace was recorded with.

    Attributes:
        checkpoint: name of the checkpoint.
        digest: sha256 of its configuration and weights.
        structure: structure of the model, such as "T(TT)T".
        device: name of the device.
        dtype: dtype of the computation.
        attention: attention kernel.
        dense: dense model of the comparison: "twin" (the LLaMA in its folder), "routing off"
            (the checkpoint's own weights with nothing dropped), or "" without a comparison.
        versions: versions of torch and transformers.
        edits: edits to the routing in the order they were made, as `analysis.debug.edits` writes them.
        rule: name of the rule that these edits come from; "" where a person made them, or nobody.
        predictor: whether predictors decide in place of the router weights of Mixture-of-Depths.
        answer_from: first token of the prompt that the model wrote itself, in an earlier run; 0 where it wrote none.
        patch: state of another prompt that was put into the run, in words; "" where none was.
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
    predictor: bool = False
    rule: str = ""
    answer_from: int = 0
    patch: str = ""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, kind = getattr(self, entry.name), _PROVENANCE.get(entry.name, str)
            if not isinstance(value, kind):
                raise TraceError(f"Provenance.{entry.name} is {value!r:.40}; it must be of the type {kind.__name__}.")

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Provenance":
        """Read what `dataclasses.asdict` made, after a way through JSON."""
        return cls(**{**entry, "edits": tuple(map(str, entry.get("edits", ())))})
