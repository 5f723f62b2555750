"""How far two models' predictions over one text are apart."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_CHUNK = 256  # positions whose logits exist at once: (chunk, V) for each model
Head = Callable[[Tensor], Tensor]


@torch.inference_mode()
def agreement(head: Head, hidden: Tensor, dense_head: Head, dense_hidden: Tensor, ids: Tensor) -> dict[str, np.ndarray]:
    """Compare next-token distributions at every position.

    Args:
        head: from hidden states (N, D) to logits (N, V), of the model.
        hidden: (T, D) last hidden states of the model.
        dense_head: of the dense model.
        dense_hidden: (T, D) of the dense model.
        ids: (T,) the tokens read.

    Returns:
        `surprisal`, `dense_surprisal`, `divergence` (T,) float32 in nats, `agrees` (T,) bool, as a `Trace` has them.
    """
    found = empty_agreement(len(ids))
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(ids)))
        ours = head(hidden[rows]).float().log_softmax(-1)
        theirs = dense_head(dense_hidden[rows]).float().log_softmax(-1)
        divergence = (theirs.exp() * (theirs - ours)).sum(-1)
        found["divergence"][rows] = divergence.cpu().numpy()
        found["agrees"][rows] = (ours.argmax(-1) == theirs.argmax(-1)).cpu().numpy()
        targets = ids[rows.start + 1 : rows.stop + 1, None]
        known = slice(rows.start + 1, rows.start + 1 + len(targets))
        found["surprisal"][known] = -ours[: len(targets)].gather(1, targets)[:, 0].cpu().numpy()
        found["dense_surprisal"][known] = -theirs[: len(targets)].gather(1, targets)[:, 0].cpu().numpy()
    return found


def empty_agreement(length: int) -> dict[str, np.ndarray]:
    """What `agreement` returns where nothing was compared: NaN, and False.

    Args:
        length: tokens of the prompt.
    """
    names = ("surprisal", "dense_surprisal", "divergence")
    return {name: np.full(length, np.nan, dtype=np.float32) for name in names} | {"agrees": np.zeros(length, bool)}
