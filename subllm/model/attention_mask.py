"""The caller's mask of padding, and masks for attention kernels over the packed tokens of a level."""

from typing import Any

import torch
from torch import Tensor

from ..routing import Lengths


def attention_mask(
    kernel: str, hidden_states: Tensor, past: Lengths, counts: Lengths, texts: Tensor | None = None
) -> Tensor | None:
    """Build the mask for the attention kernel, or None where plain causal attention is right.

    Rows are packed, so without cached tokens causal attention never sees padding; with cached tokens a single new token
    sees every slot of its row. Only several new tokens, rows of different length, or rows with several texts need one.

    Args:
        kernel: "sdpa", "eager", or a flash attention.
        hidden_states: (B, L, D) of the new tokens, packed.
        past: cached tokens per row.
        counts: new tokens per row.
        texts: (B, L) number of each token's text where rows hold several and nothing is cached, or None.

    Returns:
        None, or (B, 1, L, slots): True (or 0.0) where slot <= the query's own slot, and in the same text. For flash
        attention a (B, slots) mask of the slots in use.

    Raises:
        ValueError: under flash attention, for several new tokens per row behind a cache in a batch, which it aligns to
            the longest row's last key, and for several texts in a row.
    """
    width, device = hidden_states.shape[1], hidden_states.device
    eager = kernel == "eager"  # knows no causality of its own
    alone = width == 1 and past.is_even and counts.is_even
    if width == 0 or alone or (texts is None and not past.longest and not eager):
        return None
    slots = torch.arange((past + counts).longest, device=device)
    if "flash" in kernel:
        if texts is not None:
            raise ValueError(
                "The position_ids restart within a row, so that it holds several texts, and flash attention cannot "
                "keep them apart; use attn_implementation='sdpa' or 'eager', or one text per row."
            )
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
    if texts is not None:
        allowed = allowed & (texts[:, None, :, None] == texts[:, None, None, :])
    if eager:
        lowest = torch.finfo(hidden_states.dtype).min
        return torch.zeros_like(allowed, dtype=hidden_states.dtype).masked_fill(~allowed, lowest)
    return allowed


def padding_mask(mask: Any, batch: int, length: int, cached: int, device: torch.device) -> Tensor:
    """The caller's mask as (B, T) or (B, cached + T) bool, on the device.

    Args:
        mask: what the caller gave.
        batch: B, rows of the input.
        length: T, columns of the input.
        cached: columns that were read before.
        device: of the input.

    Raises:
        ValueError: if it has another shape.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        found = f"has {mask.ndim} dimensions" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise ValueError(
            f"attention_mask {found}; a SUBLLM makes the mask of each level itself, so give a tensor (rows, columns) "
            "with 0 at padding. Several texts in a row are told apart by position_ids that restart."
        )
    if mask.shape[0] != batch or mask.shape[1] not in (length, cached + length):
        allowed = f"({batch}, {length})" + (f" or ({batch}, {cached + length})" if cached else "")
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, but the input has {batch} rows of {length} columns "
            f"behind {cached} cached ones; the shape must be {allowed}."
        )
    return mask.to(device, torch.bool)


def seen_columns(mask: Tensor | None, past: Lengths, length: int, cached: int, device: torch.device) -> Tensor:
    """(B, cached + T) False at all padding that was ever read.

    Args:
        mask: from `padding_mask`, or None if no new token is padding.
        past: cached tokens per row.
        length: T, columns of the input.
        cached: columns that were read before.
        device: of the input.

    Raises:
        ValueError: if padding was cached and the mask does not say where.
    """
    if mask is not None and mask.shape[1] == cached + length:
        return mask
    if any(tokens != cached for tokens in past.rows):
        raise ValueError(
            f"The cache has read padding; for attention in the input's columns give the mask of all {cached + length}."
        )
    seen = torch.ones(len(past.rows), cached + length, dtype=torch.bool, device=device)
    if mask is not None:
        seen[:, cached:] = mask
    return seen
