"""Which single decision about a token moves the answer most: exactly, and by a first-order estimate.

Exactly, every candidate is one pass from the level on, several in a batch. The estimate is the derivative of the
answer's log-probability by every token's weight a, from one pass forward and one back: a dropped token would go from
weight 0 to 1, a kept one from its weight to 0. It does not see that a dropped token is out of the others' sight too,
so it is checked against exact values, by rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from subllm import Probe, Selection
from subllm.checkpoints.load import dtype_name
from subllm.routing import LevelTokens, Override, Router

from ..cost.measure import free_bytes
from ..cost.roofline import dense, level_tokens, prefill_bytes
from ..errors import AnalysisError
from ..guard import Progress, frozen, out_of_memory_said, silent
from .intervene import Ground, objective

_MOST_ROWS = 8


@dataclass(frozen=True, eq=False)
class Effects:
    """What flipping single tokens at one level does to the log-probability of the answer, in nats.

    Attributes:
        level: at which they are flipped.
        tokens: (N,) candidates.
        kept: (N,) whether the level keeps each, unless it is flipped.
        exact: (N,) measured; NaN where not measured yet.
        estimate: (N,) first-order.
    """

    level: int
    tokens: np.ndarray
    kept: np.ndarray
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


def candidates(ground: Ground, level: int) -> np.ndarray:
    """(N,) tokens of the prompt that reached a level's router, and whose keeping or dropping can be flipped.

    Args:
        ground: the prompt.
        level: at which they would be flipped.

    Raises:
        AnalysisError: if the model has no such level.
    """
    routing = ground.trace.routing
    if level not in routing.levels:
        raise AnalysisError(
            "There is no Level {level}; the number of levels of this model is {levels}.",
            level=level,
            levels=routing.num_levels,
        )
    return np.flatnonzero(routing.reached[level - 1])


def estimate(ground: Ground, level: int) -> Effects:
    """First-order effects of all candidates.

    Args:
        ground: the prompt.
        level: at which they are flipped.

    Raises:
        AnalysisError: if the model has no such level.
        RunStopped: when memory runs out.
    """
    tokens = candidates(ground, level)
    effects = np.zeros(len(tokens), dtype=np.float32)
    kept = ground.trace.routing.kept[level - 1][tokens]
    for all_kept in (False, True):  # a dropped token has to be in the level for its weight to have a derivative
        if all_kept and kept.all():
            continue
        weights, derivative = _derivative(ground, level, all_kept=all_kept)
        chosen = ~kept if all_kept else kept
        effects[chosen] = derivative[tokens][chosen] if all_kept else -(weights * derivative)[tokens][chosen]
    return Effects(level, tokens, kept, np.full(len(tokens), np.nan, dtype=np.float32), effects)


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
    model, level = ground.model, effects.level
    exact = effects.exact.copy()
    rows = _rows(ground)
    with torch.inference_mode():
        before = objective(ground, ground.prefill.hidden_states[None]).item()
    for start in range(0, len(wanted), rows):
        progress(start / len(wanted), "search", done=start, total=len(wanted))
        part = list(wanted[start : start + rows])
        flipped = torch.tensor(effects.tokens[part], device=model.device)[:, None]
        probe = Probe(override=_flipping(level, flipped), resume=ground.prefill.snapshots[level])
        with torch.inference_mode(), out_of_memory_said(len(part) * ground.ids.shape[1]):
            output = model.model(ground.ids.expand(len(part), -1), use_cache=False, probe=probe)
            after = objective(ground, output.last_hidden_state)
        exact[part] = after.float().cpu().numpy() - before
        yield replace(effects, exact=exact.copy())


def _flipping(at: int, flipped: Tensor) -> Override:
    """What the routers decide, but for one token (B, 1) of every row at one level."""

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        selection = router.select(tokens, training=False)
        if level != at:
            return selection
        own = tokens.positions == flipped
        weights = selection.weights.masked_fill(own, 1.0)  # read at kept tokens only
        return Selection.of(tokens, selection.kept ^ own, weights, selection.scores, selection.threshold)

    return decide


def _derivative(ground: Ground, at: int, *, all_kept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (T,) at a level, and the derivative of the objective by them; 0 where a token is not in the level."""
    model, length = ground.model, ground.ids.shape[1]
    own = torch.zeros(length, device=model.device)

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        nonlocal own
        selection = router.select(tokens, training=False)
        if level != at:
            return selection
        own = own.index_put((tokens.positions[0],), selection.weights[0].detach()).requires_grad_()
        kept = torch.ones_like(selection.kept) if all_kept else selection.kept
        return replace(selection, kept=kept, weights=own[tokens.positions])

    probe = Probe(override=decide, resume=ground.prefill.snapshots[at])
    with frozen(model), torch.enable_grad(), out_of_memory_said(length):
        output = model.model(ground.ids.clone(), use_cache=False, probe=probe)
        value = objective(ground, output.last_hidden_state)[0]
        (derivative,) = torch.autograd.grad(value, own)
    return own.detach().cpu().numpy(), derivative.float().cpu().numpy()


def _rows(ground: Ground) -> int:
    """Candidates in one batch."""
    config, dtype = dense(ground.model.config), dtype_name(ground.model)
    each = prefill_bytes(config, level_tokens(config, ground.ids.shape[1]), 1, dtype)
    return max(1, min(_MOST_ROWS, int(free_bytes(ground.model.device) / (2 * each))))
