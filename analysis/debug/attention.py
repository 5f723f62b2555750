"""Attention of one token in every block. Inside a level only kept tokens are seen, at their places in the prompt."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from subllm import Event, Probe, Ran, SubllmForCausalLM
from subllm.model.levels import Tokens
from subllm.routing import Override

from ..guard import out_of_memory_reported


@torch.inference_mode()
def attention_of(
    model: SubllmForCausalLM, token_ids: np.ndarray, token: int, override: Override | None = None
) -> np.ndarray:
    """Attention of one token, computed from the queries and keys of a real forward pass.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        token: index of the token.
        override: decides in place of the routers, as in `Probe`.

    Returns:
        (L, H, T) float32 for L blocks and H heads; NaN where the block did not process the token, 0 at tokens that it
        could not attend to.

    Raises:
        RunStopped: when memory runs out.
    """
    blocks, heads = model.config.parsed_structure.num_blocks, model.config.num_attention_heads
    found = np.full((blocks, heads, len(token_ids)), np.nan, dtype=np.float32)

    def observe(event: Event) -> None:
        if not isinstance(event, Ran):
            return
        places = event.before.positions[0].cpu().numpy()
        at = np.flatnonzero(places == token)
        if len(at):
            rows = _rows(model.model.layers[event.block], event.before, int(at[0]))
            found[event.block] = 0
            found[event.block][:, places[: at[0] + 1]] = rows.cpu().numpy()

    ids = torch.tensor(token_ids[: token + 1], device=model.device)[None]
    with out_of_memory_reported(len(token_ids)):
        model.model(ids, use_cache=False, probe=Probe(observe=observe, override=override))
    return found


def _rows(block: Any, tokens: Tokens, at: int) -> Tensor:
    """(H, at + 1) attention in a block, from the token in slot `at` to itself and those before it."""
    attention, (cos, sin) = block.self_attn, tokens.rotary
    shape = (1, at + 1, -1, attention.head_dim)
    hidden = block.input_layernorm(tokens.hidden_states[:, : at + 1])
    queries = attention.q_proj(hidden).view(shape).transpose(1, 2)
    keys = attention.k_proj(hidden).view(shape).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(queries, keys, cos[:, : at + 1], sin[:, : at + 1])
    keys = repeat_kv(keys, attention.num_key_value_groups)
    return (queries[0, :, -1:] @ keys[0].transpose(1, 2) * attention.scaling).float().softmax(-1)[:, 0]
