"""What one token attends to in every block: inside a span only kept tokens, mapped back to the prompt."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from subllm import StreamState, SubllmForCausalLM
from subllm.structure import BLOCK

from .record import out_of_memory_said


@torch.inference_mode()
def attention_of(model: SubllmForCausalLM, token_ids: np.ndarray, token: int) -> np.ndarray:
    """Attention of one token, computed from the queries and keys of a real forward.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        token: index into it.

    Returns:
        (L, H, T) float32; NaN where the block did not process the token, 0 at tokens that it could not see.

    Raises:
        RunStopped: when memory runs out.
    """
    structure = model.config.parsed_structure
    found = np.full((structure.num_blocks, model.config.num_attention_heads, len(token_ids)), np.nan, dtype=np.float32)
    seen: list[tuple[int, Tensor]] = []
    positions: Tensor | None = None

    def observe(state: StreamState) -> None:
        nonlocal positions
        if state.symbol == BLOCK and seen:
            block, rows = seen.pop()
            places = state.positions[0].cpu().numpy()
            at = np.flatnonzero(places == token)
            if len(at):
                found[block] = 0
                found[block][:, places[: at[0] + 1]] = rows.cpu().numpy()
        positions = state.positions

    def capture(block: int) -> Any:
        def hook(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            assert positions is not None
            at = (positions[0] == token).nonzero()
            rows = _rows(attention, hidden, kwargs["position_embeddings"], int(at[0])) if len(at) else hidden[0, :0]
            seen.append((block, rows))

        return hook

    hooks = [
        layer.self_attn.register_forward_pre_hook(capture(block), with_kwargs=True)
        for block, layer in enumerate(model.model.layers)
    ]
    try:
        with out_of_memory_said(len(token_ids)):
            ids = torch.tensor(token_ids[: token + 1], device=model.device)[None]
            model.model(ids, use_cache=False, observer=observe)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _rows(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], at: int) -> Tensor:
    """(H, at + 1) attention of the token in slot `at` to those up to it."""
    shape = (1, at + 1, -1, attention.head_dim)
    hidden, (cos, sin) = hidden[:, : at + 1], rotary
    queries = attention.q_proj(hidden).view(shape).transpose(1, 2)
    keys = attention.k_proj(hidden).view(shape).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(queries, keys, cos[:, : at + 1], sin[:, : at + 1])
    keys = repeat_kv(keys, attention.num_key_value_groups)
    return (queries[0, :, -1:] @ keys[0].transpose(1, 2) * attention.scaling).float().softmax(-1)[:, 0]
