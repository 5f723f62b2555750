"""How many operations a forward pass needs, counted from the configuration and the tokens that each block sees.

An operation is a multiplication or an addition of a matrix product, as `torch.utils.flop_counter` counts them: an
(m, k) by (k, n) product takes 2mkn. Norms, activations, rotary embedding, scorers, gathers and bypasses are left out:
together they are far below 1%.
"""

from collections.abc import Sequence

from transformers import LlamaConfig


def linear_operations(config: LlamaConfig) -> int:
    """Operations per token of one block's seven projections.

    Args:
        config: of the model.
    """
    width, heads, size = config.hidden_size, config.num_attention_heads, head_dim(config)
    attention = 2 * width * size * (2 * heads + 2 * key_value_heads(config))  # query and output, key and value
    return attention + 3 * 2 * width * config.intermediate_size


def attention_operations(config: LlamaConfig, pairs: int) -> int:
    """Operations of one block's two attention products.

    Args:
        config: of the model.
        pairs: of a query and a key that it may see; T(T+1)/2 for T tokens and a causal kernel that skips the rest.
    """
    return 4 * pairs * config.num_attention_heads * head_dim(config)


def prefill_operations(config: LlamaConfig, block_tokens: Sequence[int]) -> int:
    """Operations of reading a prompt, with logits for its last token.

    Args:
        config: of the model.
        block_tokens: tokens that each block processes.
    """
    blocks = sum(
        n * linear_operations(config) + attention_operations(config, n * (n + 1) // 2) for n in map(int, block_tokens)
    )
    return blocks + 2 * config.hidden_size * config.vocab_size


def lens_operations(config: LlamaConfig, block_tokens: Sequence[int]) -> int:
    """Operations of the head reading off every token after every block that processed it.

    Args:
        config: of the model.
        block_tokens: tokens that each block processes.
    """
    return 2 * config.hidden_size * config.vocab_size * sum(map(int, block_tokens))


def decode_operations(config: LlamaConfig, keys: Sequence[int]) -> int:
    """Operations of one new token.

    Args:
        config: of the model.
        keys: for each block that processes the token, how many keys it sees, its own included.
    """
    blocks = sum(linear_operations(config) + attention_operations(config, int(n)) for n in keys)
    return blocks + 2 * config.hidden_size * config.vocab_size


def head_dim(config: LlamaConfig) -> int:
    """Width of one attention head."""
    return config.head_dim or config.hidden_size // config.num_attention_heads


def key_value_heads(config: LlamaConfig) -> int:
    """Heads of keys and values; fewer than those of queries in grouped-query attention."""
    return config.num_key_value_heads or config.num_attention_heads
