"""Agreement of two models: their next-token distributions compared at every position of a text."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from subllm.model.divergence import divergence_of

from .parts import Agreement

_CHUNK = 256  # positions whose logits exist at once: (chunk, V) for each model
Head = Callable[[Tensor], Tensor]


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
    (found,) = agree_each(head, hidden[None], other_head, other_hidden, ids, reference)
    return found


@torch.inference_mode()
def agree_each(
    head: Head, hidden: Tensor, other_head: Head, other_hidden: Tensor, ids: Tensor, reference: str
) -> list[tuple[np.ndarray, Agreement]]:
    """`agree` for several runs of the model over one text, with the same arguments otherwise.

    Args:
        head: see `agree`.
        hidden: (R, T, D) last hidden states of each run.
        other_head: see `agree`.
        other_hidden: see `agree`.
        ids: see `agree`.
        reference: see `agree`.

    Returns:
        What `agree` returns, for each run.
    """
    runs, length = hidden.shape[:2]
    chunk = max(_CHUNK // max(runs, 1), 1)
    other, columns = [], []  # columns: surprisal, divergence and agreement of some positions, (3, R, chunk)
    for start in range(0, length, chunk):
        rows = slice(start, min(start + chunk, length))
        theirs = other_head(other_hidden[rows]).float().log_softmax(-1)
        ours = head(hidden[:, rows]).float().log_softmax(-1)
        targets = ids[rows.start + 1 : rows.stop + 1, None]
        targets = torch.cat([targets, targets.new_zeros(len(theirs) - len(targets), 1)])  # nothing follows the last
        other.append(-theirs.gather(1, targets)[:, 0])
        surprisal = -ours.gather(2, targets.expand(runs, -1, -1))[..., 0]
        agrees = ours.argmax(-1) == theirs.argmax(-1)
        columns.append(torch.stack([surprisal, divergence_of(ours, theirs), agrees.float()]))
    surprisal, divergence, agrees = torch.cat(columns, dim=2).cpu().numpy()  # one wait for the device
    found, other_surprisal = _shifted(surprisal), _shifted(torch.cat(other).cpu().numpy())
    return [
        (found[run], Agreement(reference, other_surprisal, divergence[run], agrees[run] > 0)) for run in range(runs)
    ]


def _shifted(following: np.ndarray) -> np.ndarray:
    """(..., T) surprisal of each token, out of that of the token after it; NaN at the first."""
    return np.concatenate([np.full((*following.shape[:-1], 1), np.nan, np.float32), following[..., :-1]], axis=-1)
