"""Tokens per level, and bytes of weights, caches and activations, counted from the configuration.

Letters: T tokens per sequence, B sequences, S levels inside of the whole sequence, L blocks.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from subllm import SubllmConfig
from subllm.configuration import LIGHT_HEAVY_FIELDS
from subllm.structure import CLOSE, LIGHT_HEAVY, OPEN

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
    fields |= {name: getattr(SubllmConfig, name) for name in LIGHT_HEAVY_FIELDS}
    # a list would need one name per level, and some fields a level whose router has them
    fields |= {name: getattr(SubllmConfig, name) for name in ("router", "predictor", "router_weight")}
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
    routing, site_kinds = 0, [site.kind for site in config.parsed_structure.sites]
    kinds = list(zip(config.router_classes, site_kinds, config.strides, strict=True))
    for kind, number in Counter(kinds).items():  # those of a kind have as many weights
        with torch.device("meta"):
            router = kind[0](config, kinds.index(kind) + 1)
        routing += number * (width * router.has_bypass + sum(each.numel() for each in router.parameters()))
    return blocks * block + biases + embeddings + width + routing


def cache_bytes(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> float:
    """Keys and values of sequences, and the open group and last result that levels carry which merge tokens.

    Args:
        config: of the model.
        levels: tokens per level of one sequence.
        batch: sequences.
        dtype: of the cache.
    """
    each, groups = 2 * head_dim(config) * BYTES[dtype], key_value_heads(config)
    total = groups * sum(block_tokens(config, levels))
    for sites in config.parsed_structure.light_heavy.values():  # the heavy heads have keys of routed tokens only
        assert config.light_heads is not None
        heavy = groups - config.light_heads * groups // config.num_attention_heads
        total += heavy * sum(levels[site.level] - levels[site.parent] for site in sites if site.kind == "key_value")
    carried = config.hidden_size * sum(stride for stride in config.strides if stride > 1)
    return batch * (each * total + BYTES[dtype] * carried)


def prefill_bytes(
    config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16", *, pieces: bool = False
) -> float:
    """Most memory of tensors at once while prompts are read, weights left out and the cache included.

    Counted for transformers' blocks with a fused attention kernel, which on the CPU repeats no keys. A light/heavy
    block also has a mask of its routed queries and keys; it is counted within a tenth.

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
            transient = present * max(attention, mlp)
            if step.symbol == LIGHT_HEAVY:
                sites = {site.kind: levels[site.level] for site in config.parsed_structure.light_heavy[step.index]}
                light, masked = config.light_intermediate_size or 0, sites["query"] * sites["key_value"]
                routed = sites["mlp"] * (2 * width + 3 * (config.intermediate_size - light))
                transient = max(
                    present * attention + masked * (1 + 1 / BYTES[dtype]), present * (4 * width + 3 * light) + routed
                )
            peak = max(peak, cached + outer[-1] + present * rotary + transient)
    return batch * BYTES[dtype] * peak


def activation_bytes(config: SubllmConfig, levels: Sequence[float], batch: int = 1, dtype: str = "bfloat16") -> float:
    """What a training step keeps of its forward pass for the backward pass, nothing recomputed, the head left out.

    Counted for transformers' blocks with a fused attention kernel that repeats no keys. A light/heavy block is counted
    within a fifth.

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
    for sites in config.parsed_structure.light_heavy.values():  # the heavy branches keep what is routed only
        missing = {site.kind: levels[site.parent] - levels[site.level] for site in sites}
        heavy = heads - (config.light_heads or 0)
        total -= missing["query"] * heavy * (2 * each * size + 4)
        total -= missing["key_value"] * 2 * each * size * heavy * key_value_heads(config) // heads
        total -= missing["mlp"] * 4 * each * (config.intermediate_size - (config.light_intermediate_size or 0))
    for site, name, router in zip(config.parsed_structure.sites, config.routers, config.router_classes, strict=True):
        if router.merges_tokens:  # the stream outside, the change, its weights, and whose result each token gets
            total += (2 * each * width + each + 8) * levels[site.parent]
            continue
        # the tokens before, and after for the bypass; where weights are learned, their difference and what was scored
        total += (1 + router.has_bypass) * each * width * levels[site.level]
        if router.scores_tokens:
            total += each * width * levels[site.level] + 4 * width * levels[site.parent]
        if name == "mod" and config.predictor:  # what its two layers read, in float32
            total += (4 * width * (dtype != "float32") + 8 * (width // 2)) * levels[site.parent]
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
