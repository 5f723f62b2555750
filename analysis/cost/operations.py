"""How many operations a forward pass needs, counted from the configuration and the tokens at each level.

An operation is a multiplication or an addition of a matrix product, as `torch.utils.flop_counter` counts them: an
(m, k) by (k, n) product takes 2mkn. Norms, activations, rotary embedding, scorers, gathers and bypasses are left out:
together they are far below 1%.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import LlamaConfig

from subllm import SubllmConfig
from subllm.model.light_heavy import linear_operations as divided_linear


def linear_operations(config: LlamaConfig) -> int:
    """Operations per token of one block's seven projections.

    Args:
        config: of the model.
    """
    width, heads, size = config.hidden_size, config.num_attention_heads, head_dim(config)
    attention = 2 * width * size * (2 * heads + 2 * key_value_heads(config))  # query and output, key and value
    return attention + 3 * 2 * width * config.intermediate_size


def attention_operations(config: LlamaConfig, pairs: float) -> float:
    """Operations of one block's two attention products.

    Args:
        config: of the model.
        pairs: of a query and a key that it may see; T(T+1)/2 for T tokens and a causal kernel that skips the rest.
    """
    return 4 * pairs * config.num_attention_heads * head_dim(config)


def window_pairs(tokens: float, window: int) -> float:
    """Pairs of a query and a key that it may see, if each token sees the `window` tokens that end with it."""
    if tokens <= window:
        return tokens * (tokens + 1) / 2
    return window * tokens - window * (window - 1) / 2


@dataclass(frozen=True)
class Divided:
    """Operations of a light/heavy block.

    Attributes:
        linear: matrix products by what causes them: "light", "query", "key_value" and "mlp".
        light: attention products of the light heads.
        heavy: attention products of the heavy heads.
    """

    linear: dict[str, float]
    light: float
    heavy: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.linear.values()) + self.light + self.heavy


def divided_operations(
    config: SubllmConfig, tokens: float, routed: Mapping[str, float], light_pairs: float, heavy_pairs: float
) -> Divided:
    """Operations of a light/heavy block.

    Args:
        config: of the model.
        tokens: that the block processes.
        routed: how many of them each router keeps, by "query", "key_value" and "mlp".
        light_pairs: pairs of a query and a key in its window.
        heavy_pairs: pairs of a routed query and a routed key at or before it.
    """
    assert config.light_heads is not None
    per_pair = 4 * head_dim(config)
    linear = {part: each * {**routed, "light": tokens}[part] for part, each in divided_linear(config).items()}
    heavy = config.num_attention_heads - config.light_heads
    return Divided(linear, per_pair * config.light_heads * light_pairs, per_pair * heavy * heavy_pairs)


def block_operations(config: SubllmConfig, levels: Sequence[float]) -> list[float]:
    """(L,) operations of each block, reading a prompt.

    A routed query of a light/heavy block is counted with half of the routed keys, as if queries and keys were spread
    alike over the text.

    Args:
        config: of the model.
        levels: (1 + S,) tokens at each level, the whole sequence first.
    """
    structure, found = config.parsed_structure, []
    for block, level in enumerate(structure.block_levels):
        tokens = levels[level]
        if block in structure.light_heavy:
            assert config.window is not None
            routed = {site.kind: levels[site.level] for site in structure.light_heavy[block]}
            heavy = routed["query"] * (routed["key_value"] + 1) / 2
            found.append(divided_operations(config, tokens, routed, window_pairs(tokens, config.window), heavy).total)
        else:
            found.append(tokens * linear_operations(config) + attention_operations(config, tokens * (tokens + 1) / 2))
    return found


def prefill_operations(config: SubllmConfig, levels: Sequence[float]) -> float:
    """Operations of reading a prompt, with logits for its last token.

    Args:
        config: of the model.
        levels: (1 + S,) tokens at each level, the whole sequence first.
    """
    return sum(block_operations(config, levels)) + 2 * config.hidden_size * config.vocab_size


def lens_operations(config: LlamaConfig, block_tokens: Sequence[int]) -> int:
    """Operations of the head reading off every token after every block that processed it.

    Args:
        config: of the model.
        block_tokens: tokens that each block processes.
    """
    return 2 * config.hidden_size * config.vocab_size * sum(map(int, block_tokens))


def decode_operations(config: SubllmConfig, cached: Sequence[float], present: Sequence[bool]) -> float:
    """Operations of one new token.

    Args:
        config: of the model.
        cached: (1 + S,) tokens in each level's cache, the new one included where it is present.
        present: (1 + S,) whether the new token is present at each level.
    """
    structure, total = config.parsed_structure, 2.0 * config.hidden_size * config.vocab_size
    for block, level in enumerate(structure.block_levels):
        if not present[level]:
            continue
        if block in structure.light_heavy:
            assert config.window is not None
            sites = {site.kind: site.level for site in structure.light_heavy[block]}
            routed = {kind: float(present[inside]) for kind, inside in sites.items()}
            light, heavy = min(cached[level], config.window), routed["query"] * cached[sites["key_value"]]
            total += divided_operations(config, 1, routed, light, heavy).total
        else:
            total += linear_operations(config) + attention_operations(config, cached[level])
    return total


def head_dim(config: LlamaConfig) -> int:
    """Width of one attention head."""
    return config.head_dim or config.hidden_size // config.num_attention_heads


def key_value_heads(config: LlamaConfig) -> int:
    """Heads of keys and values; fewer than those of queries in grouped-query attention."""
    return config.num_key_value_heads or config.num_attention_heads
