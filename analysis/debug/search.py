"""Which single decision about a token moves the answer most: measured, and by a first-order estimate.

Measuring a candidate takes one forward pass from the level on; several run in a batch. The estimate is the derivative
of the answer's log-probability with respect to every token's weight a, from one forward and one backward pass: a
dropped token would go from weight 0 to 1, a kept one from its weight to 0. It ignores that other tokens no longer
attend to a dropped token, so its ranks are compared with those of the measured effects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from subllm import Event, Probe, Selection
from subllm.routing import LevelTokens, Override, Router

from ..cost.measure import rows_that_fit
from ..errors import AnalysisError
from ..guard import Progress, frozen, out_of_memory_reported, silent, steps_reported
from .intervene import UneditedRun, objective


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of flipping single decisions at one level on the log-probability of the answer, in nats.

    Attributes:
        level: the level at which tokens are flipped.
        tokens: (N,) indices of the candidates in the prompt.
        kept: (N,) whether the level keeps each candidate when nothing is flipped.
        exact: (N,) measured effects; NaN where not measured yet.
        estimate: (N,) first-order estimates.
    """

    level: int
    tokens: np.ndarray
    kept: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of estimated and measured effects; NaN for fewer than three measured."""
        known = ~np.isnan(self.exact)
        if known.sum() < 3:
            return float("nan")
        pairs = pd.DataFrame({"exact": self.exact[known], "estimate": self.estimate[known]})
        return float(pairs.rank().corr().iloc[0, 1])

    def order(self) -> np.ndarray:
        """(N,) indices into `tokens`: first those with measured effects, each part by falling strength."""
        best = np.where(np.isnan(self.exact), self.estimate, self.exact)
        known = ~np.isnan(self.exact)
        return np.lexsort((-np.abs(best), ~known))


def candidates(unedited: UneditedRun, level: int) -> np.ndarray:
    """(N,) indices of the tokens that reach a level's router, so that its decision about them can be flipped.

    Raises:
        AnalysisError: if the model has no such level, or its router merges tokens.
    """
    routing = unedited.trace.routing
    if level not in routing.levels:
        raise AnalysisError(
            "There is no Level {level}; the number of levels of this model is {levels}.",
            level=level,
            levels=routing.num_levels,
        )
    if routing.merges[level - 1]:
        raise AnalysisError(
            "Level {level} merges tokens by their place, and decides about none of them; there is nothing to flip. "
            "Choose a level that keeps and drops tokens.",
            level=level,
        )
    return np.flatnonzero(routing.reached[level - 1])


def estimate_effects(unedited: UneditedRun, level: int, progress: Progress = silent) -> Effects:
    """First-order estimates of the effects of all candidates at a level.

    Args:
        unedited: the run without edits.
        level: number of the level.
        progress: receives the progress, after every step; may raise to stop.

    Raises:
        AnalysisError: if the model has no such level.
        RunStopped: when memory runs out.
    """
    tokens = candidates(unedited, level)
    effects = np.zeros(len(tokens), dtype=np.float32)
    kept = unedited.trace.routing.kept[level - 1][tokens]
    for all_kept in (False, True):  # a dropped token has to be in the level for its weight to have a derivative
        if all_kept and kept.all():
            continue
        weights, derivative = _derivative(unedited, level, progress, all_kept=all_kept)
        chosen = ~kept if all_kept else kept
        effects[chosen] = derivative[tokens][chosen] if all_kept else -(weights * derivative)[tokens][chosen]
    return Effects(level, tokens, kept, np.full(len(tokens), np.nan, dtype=np.float32), effects)


def measure_effects(
    unedited: UneditedRun, effects: Effects, wanted: Sequence[int], progress: Progress = silent
) -> Iterator[Effects]:
    """Measure the effects of some candidates, batch by batch.

    Args:
        unedited: the run without edits.
        effects: estimates, and what is measured already.
        wanted: indices into `effects.tokens`, in the order in which they are measured.
        progress: receives the progress; may raise to stop.

    Yields:
        The effects, each time with one more batch measured.

    Raises:
        RunStopped: when memory runs out.
    """
    model, level = unedited.model, effects.level
    exact = effects.exact.copy()
    rows = rows_that_fit(model, unedited.ids.shape[1])
    with torch.inference_mode(), out_of_memory_reported(unedited.ids.shape[1], model):
        before = objective(unedited, unedited.prefill.hidden_states[None]).item()
    start = 0

    def report(event: Event | None = None) -> None:
        progress(start / len(wanted), "search", done=start, total=len(wanted))

    for start in range(0, len(wanted), rows):
        report()
        part = list(wanted[start : start + rows])
        flipped = torch.tensor(effects.tokens[part], device=model.device)[:, None]
        probe = Probe(
            override=_flipping(level, flipped),
            resume=unedited.prefill.snapshots[level],
            observe=report,
        )
        with torch.inference_mode(), out_of_memory_reported(len(part) * unedited.ids.shape[1], model):
            output = model.model(unedited.ids.expand(len(part), -1), use_cache=False, probe=probe)
            after = objective(unedited, output.last_hidden_state)
        exact[part] = after.float().cpu().numpy() - before
        yield replace(effects, exact=exact.copy())


def _flipping(at: int, flipped: Tensor) -> Override:
    """The routers' decisions, except about one token (B, 1) of every row at one level."""

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        selection = router.select(tokens, training=False)
        if level != at:
            return selection
        own = tokens.positions == flipped
        weights = selection.weights.masked_fill(own, 1.0)  # read at kept tokens only
        return Selection.of(tokens, selection.kept ^ own, weights, selection.scores, selection.threshold)

    return decide


def _derivative(unedited: UneditedRun, at: int, progress: Progress, *, all_kept: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (T,) at a level, and the derivative of the objective with respect to them; 0 where the level drops."""
    model, length = unedited.model, unedited.ids.shape[1]
    own = torch.zeros(length, device=model.device)

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        nonlocal own
        selection = router.select(tokens, training=False)
        if level != at:
            return selection
        own = own.index_put((tokens.positions[0],), selection.weights[0].detach()).requires_grad_()
        kept = torch.ones_like(selection.kept) if all_kept else selection.kept
        return replace(selection, kept=kept, weights=own[tokens.positions])

    snapshot = unedited.prefill.snapshots[at]
    report = steps_reported(progress, model.config.parsed_structure, length, done=snapshot.step)
    probe = Probe(override=decide, resume=snapshot, observe=lambda event: report())
    with frozen(model), torch.enable_grad(), out_of_memory_reported(length, model):
        output = model.model(unedited.ids.clone(), use_cache=False, probe=probe)
        value = objective(unedited, output.last_hidden_state)[0]
        if not value.requires_grad:  # keys of a block whose queries are all light are read by nobody
            return own.detach().cpu().numpy(), np.zeros(length, dtype=np.float32)
        (derivative,) = torch.autograd.grad(value, own)
    return own.detach().cpu().numpy(), derivative.float().cpu().numpy()
