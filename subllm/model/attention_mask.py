"""Masks for attention kernels over the packed tokens of a level."""

import torch
from torch import Tensor

from ..routing import Lengths


def attention_mask(kernel: str, hidden_states: Tensor, past: Lengths, counts: Lengths) -> Tensor | None:
    """Build the mask for the attention kernel, or None where plain causal attention is right.

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
    alone = width == 1 and past.is_even and counts.is_even
    if (not past.longest and not eager) or width == 0 or alone:
        return None
    slots = torch.arange((past + counts).longest, device=device)
    if "flash" in kernel:
        if past.is_even and counts.is_even:
            return None
        if width > 1:
            raise ValueError(
                "Flash attention cannot read several new tokens per row behind a cache when rows differ in length, as "
                "they do inside a level; use attn_implementation='sdpa', one row, or one token at a time."
            )
        new = counts.column if isinstance(counts.column, int) else counts.column.clamp(min=1)
        return (slots < past.column + new).expand(len(past.rows), -1)
    own = (torch.arange(width, device=device) + past.column).expand(len(past.rows), -1)  # (B, L) each query's slot
    allowed = (slots <= own[..., None])[:, None]
    if eager:
        lowest = torch.finfo(hidden_states.dtype).min
        return torch.zeros_like(allowed, dtype=hidden_states.dtype).masked_fill(~allowed, lowest)
    return allowed
