"""Tokens per level, and bytes of weights, caches and activations, counted from the configuration.

Letters: T tokens per sequence, B sequences, S levels inside of the whole sequence, L blocks.
"""

from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from subllm import SubllmConfig
from subllm.routing import ROUTERS
from subllm.structure import CLOSE, OPEN

from .operations import head_dim, key_value_heads

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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


def without_levels(config: LlamaConfig) -> SubllmConfig:
    """The same model without brackets.

    Args:
        config: of a SUBLLM, or of a LLaMA.
    """
    fields = config.to_dict() | {"structure": "T" * config.num_hidden_layers, "retention_ratio": 1.0}
    fields["router"] = SubllmConfig.router  # a list would need one name per level
    return SubllmConfig.from_dict(fields | {"model_type": SubllmConfig.model_type})


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
