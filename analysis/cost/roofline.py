"""Predicted time and memory of a SUBLLM and of its dense twin, on hardware that is not at hand.

Every module of every block needs operations, and bytes moved between memory and processor; it takes as long as the
slower of the two at the hardware's peak rates (the roofline model: Williams, Waterman and Patterson, 2009). Real
kernels stay below the peaks, so times are lower bounds; ratios of two models on the same hardware are what the
prediction is for.

Letters: T tokens per sequence, B sequences, S levels beside the whole sequence, L blocks. Attention is a fused kernel
that skips masked pairs and keeps no score matrix.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from subllm import SubllmConfig
from subllm.routing import ROUTERS
from subllm.structure import CLOSE, OPEN

from ..errors import AnalysisError
from .operations import attention_operations, head_dim, key_value_heads

HARDWARE = Path(__file__).parents[2] / "assets" / "hardware.json"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TRAINING = 3  # a backward pass does the forward's products twice
_NORM_PASSES = 6  # times that norms and residual additions read or write the stream, per block


@dataclass(frozen=True)
class Hardware:
    """Peak rates of a device.

    Attributes:
        name: of the device.
        operations: per second, by dtype.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        source: where the numbers are from.
    """

    name: str
    operations: dict[str, float]
    bandwidth: float
    memory: float
    source: str

    @classmethod
    def parse(cls, entry: Any) -> "Hardware":
        """A row of the hardware table.

        Args:
            entry: with `name`, `teraflops` by dtype, `gigabytes_per_second`, `gigabytes`, `source`.

        Raises:
            AnalysisError: if a field is missing, unknown or not positive.
        """
        wanted = {"name", "teraflops", "gigabytes_per_second", "gigabytes", "source"}
        name = entry.get("name", entry) if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or set(entry) != wanted:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise AnalysisError(f"Hardware {name!r} has {found}; a row needs exactly {sorted(wanted)}.")
        rates = entry["teraflops"]
        if not isinstance(rates, dict) or not rates or set(rates) - set(BYTES):
            raise AnalysisError(f"Hardware {name!r} has teraflops {rates!r}; allowed are rates for {sorted(BYTES)}.")
        numbers = {**rates, **{key: entry[key] for key in ("gigabytes_per_second", "gigabytes")}}
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise AnalysisError(f"Hardware {name!r} has {key} {value!r}; it must be a positive number.")
        return cls(
            str(name),
            {dtype: 1e12 * rate for dtype, rate in rates.items()},
            1e9 * entry["gigabytes_per_second"],
            1e9 * entry["gigabytes"],
            str(entry["source"]),
        )

    def seconds(self, work: "Sequence[Work]", dtype: str) -> float:
        """Least time for some work.

        Args:
            work: modules that run one after another.
            dtype: of the computation; one that the device lacks runs at its fastest rate.
        """
        rate = self.operations.get(dtype) or max(self.operations.values())
        return sum(max(part.operations / rate, part.bytes / self.bandwidth) for part in work)


def load_hardware(path: Path = HARDWARE) -> list[Hardware]:
    """The hardware table.

    Args:
        path: JSON list of rows.

    Raises:
        AnalysisError: if the file or a row cannot be read.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnalysisError(f"The hardware table {path} cannot be read ({error}).") from error
    if not isinstance(rows, list):
        raise AnalysisError(f"The hardware table {path} holds a {type(rows).__name__}; it must be a list of rows.")
    return [Hardware.parse(row) for row in rows]


@dataclass(frozen=True)
class Work:
    """What one module does in one pass.

    Attributes:
        module: "projections", "attention", "mlp", "norms", "routing" or "head".
        block: number of the block, or None.
        operations: multiplications and additions of matrix products.
        bytes: read and written.
    """

    module: str
    block: int | None
    operations: float
    bytes: float


def level_tokens(config: SubllmConfig, tokens: float, retention: Sequence[float] | None = None) -> list[float]:
    """(1 + S,) tokens at each level, the whole sequence first.

    Args:
        config: of the model.
        tokens: of the sequence.
        retention: share that each level keeps of its parent's tokens; the nominal one if left out.
    """
    shares = config.parsed_structure.level_shares(retention or config.retention_ratios)
    return [tokens * share for share in shares]


def block_tokens(config: SubllmConfig, levels: Sequence[float]) -> list[float]:
    """(L,) tokens that each block processes.

    Args:
        config: of the model.
        levels: as from `level_tokens`.
    """
    return [levels[level] for level in config.parsed_structure.block_levels]


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


def speedup(
    config: SubllmConfig,
    hardware: Hardware,
    phase: str,
    tokens: float,
    batch: int = 1,
    dtype: str = "bfloat16",
    retention: Sequence[float] | None = None,
) -> float:
    """Predicted time of the dense model over that of the SUBLLM; the arguments are those of `phase_work`."""
    ours = hardware.seconds(phase_work(config, phase, tokens, batch, dtype, retention), dtype)
    return hardware.seconds(phase_work(dense(config), phase, tokens, batch, dtype), dtype) / ours


def parameters(config: SubllmConfig) -> int:
    """Weights of the model, those of routers and bypasses included.

    Args:
        config: of the model.
    """
    width, size, blocks = config.hidden_size, head_dim(config), config.parsed_structure.num_blocks
    block = width * size * 2 * (config.num_attention_heads + key_value_heads(config))
    block += 3 * width * config.intermediate_size + 2 * width
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    biases = blocks * size * (config.num_attention_heads + 2 * key_value_heads(config)) if config.attention_bias else 0
    biases += blocks * width if config.attention_bias else 0
    biases += blocks * (2 * config.intermediate_size + width) if config.mlp_bias else 0
    with torch.device("meta"):
        routers = [ROUTERS[name](config, level) for level, name in enumerate(config.routers, start=1)]
    routing = sum(width + sum(weight.numel() for weight in router.parameters()) for router in routers)
    return blocks * block + biases + embeddings + width + routing


def cache_bytes(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> float:
    """Keys and values of sequences.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.
        dtype: of the cache.
    """
    per_token = 2 * key_value_heads(config) * head_dim(config) * BYTES[dtype]
    return batch * per_token * sum(block_tokens(config, levels))


def prefill_bytes(
    config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16", *, pieces: bool = False
) -> float:
    """Most memory of tensors at once while prompts are read, weights left out and the cache included.

    Counted for transformers' blocks with a fused attention kernel, which on the CPU repeats no keys.

    Args:
        config: of the model.
        levels: tokens per level of one prompt.
        batch: prompts.
        dtype: of activations and cache.
        pieces: second halves of blocks run piece by piece, as `subllm.model.block.Block` does on the CPU.
    """
    width, size = config.hidden_size, head_dim(config)
    queries, keys = config.num_attention_heads * size, key_value_heads(config) * size
    # the stream and its norm; queries and three of their size while they are turned, or then keys the same way
    attention = 2 * width + max(4 * queries, 2 * queries + 3 * keys)
    # what came in, the stream and its norm; gate, up and their product; transformers holds the embedding to the end
    mlp = 3 * width if pieces else 4 * width + 3 * config.intermediate_size
    rotary = 2 * size
    present, outer, cached, peak = levels[0], [0.0], 0.0, 0.0
    inside = [present]
    for step in config.parsed_structure.steps:
        if step.symbol == OPEN:
            outer.append(outer[-1] + present * (width + rotary))
            present = levels[step.index]
            inside.append(present)
        elif step.symbol == CLOSE:
            outer.pop()
            inside.pop()
            present = inside[-1]
        else:
            cached += 2 * keys * present
            peak = max(peak, cached + outer[-1] + present * (rotary + max(attention, mlp)))
    return batch * BYTES[dtype] * peak


def activation_bytes(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> float:
    """What a training step keeps of its forward pass for the backward pass, nothing recomputed, the head left out.

    Counted for transformers' blocks with a fused attention kernel that repeats no keys.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.
        dtype: of activations.
    """
    width, size, heads, each = config.hidden_size, head_dim(config), config.num_attention_heads, BYTES[dtype]
    norm = 4 * width + each * width + 4  # its input in float32, normalised, and one scale
    # two norms and what they give; queries, keys, values and result of the attention, with its sums; four in the MLP
    attention = each * size * (2 * heads + 2 * key_value_heads(config)) + 4 * heads
    block = 2 * (norm + each * width) + attention + each * 4 * config.intermediate_size
    once = 2 * each * size  # rotary
    total = block * sum(block_tokens(config, levels)) + (norm + 8) * levels[0] + once * sum(levels)
    for site, name in zip(config.parsed_structure.sites, config.routers, strict=True):
        # the tokens before and after; where weights are learned, their difference and what the scorer read, too
        total += 2 * each * width * levels[site.level]
        if ROUTERS[name].scores_tokens:
            total += each * width * levels[site.level] + 4 * width * levels[site.parent]
    return batch * total


def training_bytes(config: SubllmConfig, levels: Sequence[float], batch: int = 1) -> dict[str, float]:
    """Memory of mixed-precision training with Adam on one device, nothing sharded and nothing recomputed.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.

    Returns:
        Bytes of "weights" (bfloat16), "gradients" (bfloat16), "optimizer" (float32 weights and two moments),
        "activations" (bfloat16, see `activation_bytes`) and "logits" (bfloat16, and float32 with their gradient).
    """
    count = parameters(config)
    return {
        "weights": 2.0 * count,
        "gradients": 2.0 * count,
        "optimizer": 12.0 * count,
        "activations": activation_bytes(config, levels, batch),
        "logits": (2.0 + 4.0 + 4.0) * batch * levels[0] * config.vocab_size,
    }


def dense(config: LlamaConfig) -> SubllmConfig:
    """The same model without brackets.

    Args:
        config: of a SUBLLM, or of a LLaMA.
    """
    fields = config.to_dict() | {"structure": "T" * config.num_hidden_layers, "retention_ratio": 1.0}
    fields["router"] = SubllmConfig.router  # a list would need one name per level
    return SubllmConfig.from_dict(fields | {"model_type": SubllmConfig.model_type})


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
