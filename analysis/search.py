"""Which single decision about a token moves the answer most: exactly, and by a first-order estimate.

Exactly, every candidate is one pass from the span on, several in a batch. The estimate is the derivative of the
answer's log-probability by every token's weight a, from one pass forward and one back: a dropped token would go from
weight 0 to 1, a kept one from its weight to 0. It does not see that a dropped token is out of the others' sight too,
so it is checked against exact values, by rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from subllm.checkpoints import dtype_name
from subllm.subsampling import Rule, inference_rule

from .intervene import Ground, objective
from .measure import free_bytes
from .record import Progress, frozen, out_of_memory_said, silent
from .roofline import dense, level_tokens, prefill_bytes

_MOST_ROWS = 8


@dataclass(frozen=True, eq=False)
class Effects:
    """What flipping single tokens at one span does to the log-probability of the answer, in nats.

    Attributes:
        span: number of the subsampling module.
        tokens: (N,) candidates.
        exact: (N,) measured; NaN where not measured yet.
        estimate: (N,) first-order.
    """

    span: int
    tokens: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of the estimate with the exact values; NaN below three of them."""
        known = ~np.isnan(self.exact)
        if known.sum() < 3:
            return float("nan")
        pairs = pd.DataFrame({"exact": self.exact[known], "estimate": self.estimate[known]})
        return float(pairs.rank().corr().iloc[0, 1])

    def order(self) -> np.ndarray:
        """(N,) indices of candidates, the strongest effect first, by the exact value where it is known."""
        best = np.where(np.isnan(self.exact), self.estimate, self.exact)
        known = ~np.isnan(self.exact)
        return np.lexsort((-np.abs(best), ~known))


def candidates(ground: Ground, span: int) -> np.ndarray:
    """(N,) tokens of the prompt that reached a span, and whose keeping or dropping can be flipped.

    Args:
        ground: the prompt.
        span: number of the subsampling module.
    """
    return np.flatnonzero(~np.isnan(ground.scores[span]))


def estimate(ground: Ground, span: int) -> Effects:
    """First-order effects of all candidates.

    Args:
        ground: the prompt.
        span: number of the subsampling module.

    Raises:
        RunStopped: when memory runs out.
    """
    tokens = candidates(ground, span)
    effects = np.zeros(len(tokens), dtype=np.float32)
    kept = ground.kept[span][tokens]
    for all_kept in (False, True):  # a dropped token has to be in the span for its weight to have a derivative
        if all_kept and kept.all():
            continue
        weights, derivative = _derivative(ground, span, all_kept=all_kept)
        chosen = ~kept if all_kept else kept
        effects[chosen] = derivative[tokens][chosen] if all_kept else -(weights * derivative)[tokens][chosen]
    return Effects(span, tokens, np.full(len(tokens), np.nan, dtype=np.float32), effects)


def measure(ground: Ground, effects: Effects, wanted: Sequence[int], progress: Progress = silent) -> Iterator[Effects]:
    """Exact effects of some candidates, as they come.

    Args:
        ground: the prompt.
        effects: so far.
        wanted: indices into `effects.tokens`, in this order.
        progress: told how many are done; may raise to stop.

    Yields:
        Effects, a batch of candidates more each time.

    Raises:
        RunStopped: when memory runs out.
    """
    model, span = ground.model, effects.span
    exact = effects.exact.copy()
    rows = _rows(ground)
    with torch.inference_mode():
        before = objective(ground, ground.hidden[None]).item()
    for start in range(0, len(wanted), rows):
        progress(start / len(wanted), "search", done=start, total=len(wanted))
        part = list(wanted[start : start + rows])
        flipped = torch.tensor(effects.tokens[part], device=model.device)[:, None]

        rule = _flipping(span, flipped)
        with torch.inference_mode(), out_of_memory_said(len(part) * ground.ids.shape[1]):
            output = model.model(
                ground.ids.expand(len(part), -1), use_cache=False, rule=rule, resume=ground.snapshots[span]
            )
            after = objective(ground, output.last_hidden_state)
        exact[part] = after.float().cpu().numpy() - before
        yield Effects(span, effects.tokens, exact.copy(), effects.estimate)


def _flipping(span: int, tokens: Tensor) -> Rule:
    """The model's own rule, but for one token (B, 1) of every row at one span."""

    def rule(number: int, scores: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, weights = inference_rule(scores)
        if number != span:
            return kept, weights
        own = positions == tokens
        return kept ^ own, torch.where(own & ~kept, 1.0, weights)

    return rule


def _derivative(ground: Ground, span: int, *, all_kept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (T,) at a span, and the derivative of the objective by them; 0 where a token is not in the span."""
    model, length = ground.model, ground.ids.shape[1]
    own = torch.zeros(length, device=model.device)

    def rule(number: int, scores: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal own
        kept, weights = inference_rule(scores)
        if number != span:
            return kept, weights
        own = own.index_put((positions[0],), weights[0].detach()).requires_grad_()
        return torch.ones_like(kept) if all_kept else kept, own[positions]

    with frozen(model), torch.enable_grad(), out_of_memory_said(length):
        output = model.model(ground.ids.clone(), use_cache=False, rule=rule, resume=ground.snapshots[span])
        value = objective(ground, output.last_hidden_state)[0]
        (derivative,) = torch.autograd.grad(value, own)
    return own.detach().cpu().numpy(), derivative.float().cpu().numpy()


def _rows(ground: Ground) -> int:
    """Candidates in one batch."""
    config, dtype = dense(ground.model.config), dtype_name(ground.model)
    each = prefill_bytes(config, level_tokens(config, ground.ids.shape[1]), 1, dtype)
    return max(1, min(_MOST_ROWS, int(free_bytes(ground.model.device) / (2 * each))))
