"""Agreement of two models: their next-token distributions compared at every position of a text."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from subllm.model.divergence import divergence_of

from .parts import Agreement

_CHUNK = 256  # positions whose logits exist at once: (chunk, V) for each model
Head = Callable[[Tensor], Tensor]


@torch.inference_mode()
def agree(
    head: Head, hidden: Tensor, other_head: Head, other_hidden: Tensor, ids: Tensor, reference: str
) -> tuple[np.ndarray, Agreement]:
    """Compare next-token distributions at every position.

    Args:
        head: head of the model, from hidden states (N, D) to logits (N, V).
        hidden: (T, D) last hidden states of the model.
        other_head: head of the reference.
        other_hidden: (T, D) last hidden states of the reference.
        ids: (T,) ids of the text.
        reference: name of the reference, as in `Agreement`.

    Returns:
        (T,) float32 surprisal under the model in nats, NaN at the first token; and its agreement with the reference.
    """
    surprisal, other_surprisal, divergence = (np.full(len(ids), np.nan, dtype=np.float32) for _ in range(3))
    agrees = np.zeros(len(ids), dtype=bool)
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(ids)))
        ours = head(hidden[rows]).float().log_softmax(-1)
        theirs = other_head(other_hidden[rows]).float().log_softmax(-1)
        divergence[rows] = divergence_of(ours, theirs).cpu().numpy()
        agrees[rows] = (ours.argmax(-1) == theirs.argmax(-1)).cpu().numpy()
        targets = ids[rows.start + 1 : rows.stop + 1, None]
        known = slice(rows.start + 1, rows.start + 1 + len(targets))
        surprisal[known] = -ours[: len(targets)].gather(1, targets)[:, 0].cpu().numpy()
        other_surprisal[known] = -theirs[: len(targets)].gather(1, targets)[:, 0].cpu().numpy()
    return surprisal, Agreement(reference, other_surprisal, divergence, agrees)
