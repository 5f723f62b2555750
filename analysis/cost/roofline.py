"""The work of a SUBLLM in prefill, decode and training, module by module, and the predicted speed-up.

Letters: T tokens per sequence, B sequences, S levels inside of the whole sequence, L blocks. Attention is a fused
kernel that skips masked pairs and keeps no score matrix. `analysis.cost.hardware` turns work into time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from subllm import SubllmConfig
from subllm.routing import ROUTERS

from .hardware import Hardware, Work
from .operations import attention_operations, head_dim, key_value_heads
from .sizes import BYTES, block_tokens, level_tokens, without_levels

_TRAINING = 3  # a backward pass does the forward's products twice
_NORM_PASSES = 6  # times that norms and residual additions read or write the stream, per block


def prefill_work(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> list[Work]:
    """Reading prompts of equal length, with logits for the last token of each.

    Args:
        config: of the model.
        levels: tokens per level of one prompt, as from `level_tokens`.
        batch: prompts.
        dtype: of weights and activations.
    """
    work = []
    for block, tokens in enumerate(block_tokens(config, levels)):
        work += _block(config, block, batch * tokens, batch * tokens * (tokens + 1) / 2, 0, dtype)
    return [*work, *_routing(config, [batch * n for n in levels], dtype), _head(config, batch, dtype)]


def decode_work(
    config: SubllmConfig,
    cached: Sequence[float],
    kept: Sequence[float],
    batch: int = 1,
    dtype: str = "bfloat16",
) -> list[Work]:
    """One new token for every sequence; expected values, since each token is kept or dropped by itself.

    Args:
        config: of the model.
        cached: (1 + S,) tokens in each level's cache, per sequence.
        kept: (1 + S,) probability that a new token is present at each level; the first is 1.
        batch: sequences.
        dtype: of weights, activations and cache.
    """
    work = []
    shares = block_tokens(config, kept)
    for block, (share, keys) in enumerate(zip(shares, block_tokens(config, cached), strict=True)):
        runs = 1 - (1 - share) ** batch  # that any sequence's token needs the block, and so its weights
        parts = _block(config, block, batch * share, batch * share * (keys + 1), batch * share * keys, dtype, runs)
        work += parts
    return [*work, *_routing(config, [batch * share for share in kept], dtype), _head(config, batch, dtype)]


def training_work(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> list[Work]:
    """One training step without the optimizer: forward and backward, logits for every token.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.
        dtype: of weights and activations.
    """
    forward = prefill_work(config, levels, batch, dtype)[:-1]
    head = _head(config, batch * levels[0], dtype)
    return [Work(w.module, w.block, _TRAINING * w.operations, _TRAINING * w.bytes) for w in [*forward, head]]


PHASES: tuple[str, ...] = ("prefill", "decode", "training")


def phase_work(
    config: SubllmConfig,
    phase: str,
    tokens: float,
    batch: int = 1,
    dtype: str = "bfloat16",
    retention: Sequence[float] | None = None,
) -> list[Work]:
    """Work of one phase: reading prompts, writing the next token after them, or one training step.

    Args:
        config: of the model.
        phase: one of `PHASES`.
        tokens: per sequence.
        batch: sequences.
        dtype: of the computation.
        retention: share that each level keeps; the nominal one if left out.
    """
    levels = level_tokens(config, tokens, retention)
    if phase == "decode":
        return decode_work(config, levels, level_tokens(config, 1, retention), batch, dtype)
    return (training_work if phase == "training" else prefill_work)(config, levels, batch, dtype)


@dataclass(frozen=True)
class Scenario:
    """What a prediction assumes about the machine and its load.

    Attributes:
        hardware: device.
        tokens: tokens of every sequence.
        batch: number of sequences.
        dtype: number format of weights, activations and cache.
        retention: share of its parent's tokens that each level keeps; None for the nominal ones.
    """

    hardware: Hardware
    tokens: float = 8192
    batch: int = 1
    dtype: str = "bfloat16"
    retention: tuple[float, ...] | None = None

    def at(self, tokens: float) -> Self:
        """The same with sequences of another length."""
        return replace(self, tokens=tokens)

    def seconds(self, config: SubllmConfig, phase: str) -> float:
        """Least time of a phase, one of `PHASES`."""
        retention = self.retention if config.parsed_structure.num_levels else None
        work = phase_work(config, phase, self.tokens, self.batch, self.dtype, retention)
        return self.hardware.seconds(work, self.dtype)


def speedup(config: SubllmConfig, phase: str, scenario: Scenario) -> float:
    """Predicted time of the dense model over that of the SUBLLM."""
    return scenario.seconds(without_levels(config), phase) / scenario.seconds(config, phase)


def _block(
    config: SubllmConfig, block: int, tokens: float, pairs: float, past: float, dtype: str, weights: float = 1
) -> list[Work]:
    """One block on some tokens, which read `past` cached keys and values; its weights are read `weights` times."""
    width, size, inner = config.hidden_size, head_dim(config), config.intermediate_size
    heads, groups, each = config.num_attention_heads, key_value_heads(config), BYTES[dtype]
    projection, mlp = width * size * 2 * (heads + groups), 3 * width * inner
    return [
        Work(
            "projections",
            block,
            2 * tokens * projection,
            each * (weights * projection + tokens * (2 * width + size * (2 * heads + 2 * groups))),
        ),
        Work(
            "attention",
            block,
            attention_operations(config, 1) * pairs,
            each * size * (tokens * (2 * heads + 2 * groups) + past * 2 * groups),
        ),
        Work("mlp", block, 2 * tokens * mlp, each * (weights * mlp + tokens * (2 * width + 5 * inner))),
        Work("norms", block, 0, each * tokens * width * _NORM_PASSES),
    ]


def _routing(config: SubllmConfig, levels: Sequence[float], dtype: str) -> list[Work]:
    """What the router and the bypass of every level do, for these tokens per level."""
    work = []
    for site, name in zip(config.parsed_structure.sites, config.routers, strict=True):
        own = ROUTERS[name].work(config, levels[site.parent], levels[site.level])
        work.append(Work("routing", None, own.operations, BYTES[dtype] * own.moved))
    return work


def _head(config: SubllmConfig, tokens: float, dtype: str) -> Work:
    size = config.hidden_size * config.vocab_size
    moved = size + tokens * (config.hidden_size + config.vocab_size)
    return Work("head", None, 2 * tokens * size, BYTES[dtype] * moved)
