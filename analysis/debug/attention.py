"""Attention of one token in every block. Inside a level only kept tokens are seen, at their places in the prompt."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from subllm import Event, Probe, Ran, SubllmForCausalLM
from subllm.model.levels import Tokens
from subllm.model.light_heavy import LightHeavyBlock
from subllm.routing import LightHeavyRouter, Override

from ..guard import Progress, ids_on_device, out_of_memory_reported, silent, steps_reported


@torch.inference_mode()
def attention_of(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    token: int,
    override: Override | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Attention of one token, computed from the queries and keys of a real forward pass.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        token: index of the token.
        override: decides in place of the routers, as in `Probe`.
        progress: receives the progress, after every step; may raise to stop.

    Returns:
        (L, H, T) float32 for L blocks and H heads; NaN where the block did not process the token, 0 at tokens that it
        could not attend to. The heavy heads of a light/heavy block attend to routed tokens, and to none unless the
        token is itself routed.

    Raises:
        RunStopped: when memory runs out.
    """
    blocks, heads = model.config.parsed_structure.num_blocks, model.config.num_attention_heads
    found = np.full((blocks, heads, len(token_ids)), np.nan, dtype=np.float32)

    report = steps_reported(progress, model.config.parsed_structure, token + 1)

    def observe(event: Event) -> None:
        report()
        if not isinstance(event, Ran):
            return
        places = event.before.positions[0].cpu().numpy()
        at = np.flatnonzero(places == token)
        if len(at):
            block = model.model.layers[event.block]
            if isinstance(block, LightHeavyBlock):
                rows = _divided_rows(block, event.before, int(at[0]), override)
            else:
                rows = _rows(block, event.before, int(at[0]))
            found[event.block] = 0
            found[event.block][:, places[: at[0] + 1]] = rows.cpu().numpy()

    ids = ids_on_device(model, token_ids[: token + 1])
    with out_of_memory_reported(len(token_ids), model):
        model.model(ids, use_cache=False, probe=Probe(observe=observe, override=override))
    return found


def _rows(block: Any, tokens: Tokens, at: int) -> Tensor:
    """(H, at + 1) attention in a block, from the token in slot `at` to itself and those before it."""
    return _logits(block, tokens, at, None).softmax(-1)


def _divided_rows(block: LightHeavyBlock, tokens: Tokens, at: int, override: Override | None) -> Tensor:
    """The same in a light/heavy block, whose routers decide once more."""
    selections = {}
    for kind in ("query", "key_value"):
        router = block.routers[kind]
        assert isinstance(router, LightHeavyRouter)
        decided = router.select(tokens, False) if override is None else override(router.level, router, tokens)
        selections[kind] = decided
    keys = selections["key_value"]
    heads = torch.arange(block.self_attn.config.num_attention_heads, device=tokens.positions.device)
    light = (heads < block.light_heads)[:, None]
    logits = _logits(block, tokens, at, torch.where(light, 1.0, keys.weights[0, : at + 1]))
    near = torch.arange(at + 1, device=logits.device) > at - block.window
    seen = torch.where(light, near, keys.kept[0, : at + 1] & selections["query"].kept[0, at])
    return logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)


def _logits(block: Any, tokens: Tokens, at: int, scale: Tensor | None) -> Tensor:
    """(H, at + 1) products of the query in slot `at` and all keys up to it, these times `scale` if it is given."""
    attention, (cos, sin) = block.self_attn, tokens.rotary
    shape = (1, at + 1, -1, attention.head_dim)
    hidden = block.input_layernorm(tokens.hidden_states[:, : at + 1])
    queries = attention.q_proj(hidden).view(shape).transpose(1, 2)
    keys = attention.k_proj(hidden).view(shape).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(queries, keys, cos[:, : at + 1], sin[:, : at + 1])
    keys = repeat_kv(keys, attention.num_key_value_groups)
    found = (queries[0, :, -1:] @ keys[0].transpose(1, 2) * attention.scaling).float()[:, 0]
    return found if scale is None else found * scale
