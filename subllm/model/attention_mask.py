"""Masks for attention kernels over the packed tokens of a level."""

import torch
from torch import Tensor

from .levels import uneven


def attention_mask(kernel: str, hidden_states: Tensor, past: list[int], counts: list[int]) -> Tensor | None:
    """Mask for the attention kernel, or None where plain causal attention is right.

    Rows are packed, so without cached tokens causal attention never sees padding; with cached tokens a single new token
    sees every slot of its row. Only several new tokens, or rows of different length, need a mask.

    Args:
        kernel: "sdpa", "eager", or a flash attention.
        hidden_states: (B, L, D) of the new tokens, packed.
        past: cached tokens per row.
        counts: new tokens per row.

    Returns:
        None, or (B, 1, L, slots): True (or 0.0) where slot <= the query's own slot. For flash attention a (B, slots)
        mask of the slots in use.

    Raises:
        ValueError: for several new tokens per row behind a cache in a batch under flash attention, which aligns them to
            the longest row's last key.
    """
    width, device = hidden_states.shape[1], hidden_states.device
    eager = kernel == "eager"  # knows no causality of its own
    if (not any(past) and not eager) or width == 0 or (width == 1 and not uneven(past) and min(counts) == 1):
        return None
    total = max(n + m for n, m in zip(past, counts, strict=True))
    start = torch.tensor(past, device=device)[:, None, None]
    slots = torch.arange(total, device=device)
    if "flash" in kernel:
        if not uneven(past) and not uneven(counts):
            return None
        if width > 1:
            raise ValueError(
                "Flash attention cannot read several new tokens per row behind a cache when rows differ in length, as "
                "they do inside a level; use attn_implementation='sdpa', one row, or one token at a time."
            )
        return slots < start[:, 0] + torch.tensor(counts, device=device)[:, None].clamp(min=1)
    allowed = (slots <= start + torch.arange(width, device=device)[:, None])[:, None]
    if eager:
        lowest = torch.finfo(hidden_states.dtype).min
        return torch.zeros_like(allowed, dtype=hidden_states.dtype).masked_fill(~allowed, lowest)
    return allowed
