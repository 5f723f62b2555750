"""Patching: the state of one prompt put into the run of another, and what that changes.

A state is the residual stream of one token as it reaches the router of a level. The pass resumes from there with the
state of the other prompt's token in its place, and everything behind follows from it: routing, blocks, predictions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from subllm import Probe
from subllm.model.divergence import divergence_of
from subllm.model.levels import Snapshot

from ..errors import AnalysisError
from ..guard import Progress, out_of_memory_reported, silent
from ..trace.prefill import NEXT_TOKENS, predictions_of, prefill
from ..trace.tokenize import decode_pieces
from ..trace.trace import Trace
from .intervene import Change, UneditedRun, answer_logprob


@dataclass(frozen=True)
class Patch:
    """One state that is put in place of another.

    Attributes:
        level: level whose router the state reaches, from 1.
        token: token of the prompt whose state is replaced.
        source: token of the other prompt whose state takes its place.
    """

    level: int
    token: int
    source: int

    def __str__(self) -> str:
        return f"token {self.source} of another prompt for token {self.token} before Level {self.level}"


@dataclass(frozen=True, eq=False)
class Patched:
    """A run with a patch.

    Attributes:
        patch: what was put in.
        trace: trace of the patched run; its provenance names the patch.
        flipped: (S, T) 1 where a level keeps a token that it drops in the run without the patch, -1 the other way
            round, 0 elsewhere.
        distance: L2 norm of the difference between the two states, over that of the replaced one.
        next_ids: (K,) ids of the likeliest next tokens of any of the three runs.
        next_pieces: (K,) readable text of each.
        next_probabilities: (3, K) their probabilities without the patch, with it, and after the other prompt.
        moved: how far the next-token distribution went towards that of the other prompt: 1 where it equals it, 0 where
            it is as far from it as before, in KL divergence; NaN where there was no way to go.
        answer: log-probability of the answer, nats, without (`unedited`) and with (`edited`) the patch; None without
            an answer.
    """

    patch: Patch
    trace: Trace
    flipped: np.ndarray
    distance: float
    next_ids: np.ndarray
    next_pieces: np.ndarray
    next_probabilities: np.ndarray
    moved: float
    answer: Change | None


@torch.inference_mode()
def run_patched(run: UneditedRun, other: UneditedRun, patch: Patch, progress: Progress = silent) -> Patched:
    """Put a state of one prompt into the run of another.

    Args:
        run: the run that is patched.
        other: run of the other prompt, by the same model.
        patch: what is put in, and where.
        progress: receives the progress; may raise to stop.

    Raises:
        AnalysisError: if there is no such level or token, or one of the tokens does not reach the level.
        RunStopped: when memory runs out.
    """
    if run.model is not other.model:
        raise AnalysisError("Both prompts must be run by the same checkpoint; run the other one with it, too.")
    snapshot, at = _state(run, patch.level, patch.token)
    source, place = _state(other, patch.level, patch.source)
    tokens = snapshot.levels[-1]
    given = source.levels[-1].hidden_states[0, place].to(tokens.hidden_states)
    stream = tokens.hidden_states.clone()
    replaced, stream[0, at] = stream[0, at].clone(), given
    patched = replace(snapshot, levels=(*snapshot.levels[:-1], tokens.with_stream(stream)))
    with out_of_memory_reported(run.num_tokens, run.model):
        found = prefill(
            run.model, run.ids, length=run.num_tokens, probe=Probe(resume=patched), known=run.prefill, progress=progress
        )
        hidden = (run.prefill.hidden_states, found.hidden_states)
        rows = [_next(run, hidden[0]), _next(run, hidden[1]), _next(other, other.prefill.hidden_states)]
    top = torch.cat([row.topk(min(NEXT_TOKENS, len(row))).indices for row in rows])
    ids = torch.tensor(list(dict.fromkeys(top.tolist())), device=top.device)
    ids = ids[rows[1][ids].argsort(descending=True)]
    before, after = (max(divergence_of(row, rows[2]).item(), 0.0) for row in rows[:2])
    tokenizer, untouched = run.checkpoint.tokenizer, run.trace
    trace = replace(
        untouched,
        routing=found.routing,
        blocks=found.blocks,
        predictions=predictions_of(rows[1], tokenizer),
        provenance=replace(untouched.provenance, patch=f"{patch}, {other.trace.run}"),
    )
    return Patched(
        patch=patch,
        trace=trace,
        flipped=found.routing.kept.astype(np.int8) - untouched.routing.kept.astype(np.int8),
        distance=((given - replaced).float().norm() / replaced.float().norm().clamp(min=1e-12)).item(),
        next_ids=ids.cpu().numpy(),
        next_pieces=decode_pieces(ids.cpu().numpy(), tokenizer),
        next_probabilities=torch.stack([row[ids] for row in rows]).exp().cpu().numpy(),
        moved=1 - after / before if before > 1e-9 else float("nan"),
        answer=Change(*(answer_logprob(run, each) for each in hidden)) if run.answer_tokens else None,
    )


def patch_levels(
    run: UneditedRun, other: UneditedRun, token: int, source: int, progress: Progress = silent
) -> Iterator[Patched]:
    """The same patch before every level that both tokens reach, one after the other; see `run_patched`.

    Args:
        run: the run that is patched.
        other: run of the other prompt.
        token: token whose state is replaced.
        source: token of the other prompt.
        progress: receives the progress; may raise to stop.

    Raises:
        AnalysisError: if there is no such token, or the model has no levels.
    """
    levels = run.trace.routing.levels
    _check(run, 1, token)
    _check(other, 1, source)
    for level in levels:
        reached = run.trace.routing.reached[level - 1, token], other.trace.routing.reached[level - 1, source]
        if all(reached):
            progress(level / (len(levels) + 1), "patching", done=level - 1, total=len(levels))
            yield run_patched(run, other, Patch(level, token, source))


def _check(run: UneditedRun, level: int, token: int) -> None:
    """Check that there are such a level and token."""
    levels = run.trace.routing.num_levels
    if not levels:
        raise AnalysisError("This model has no levels, so there is no place where a state could be put in.")
    if not 1 <= level <= levels:
        raise AnalysisError(
            "There is no Level {level}; the number of levels of this model is {levels}.", level=level, levels=levels
        )
    if not 0 <= token < run.num_tokens:
        raise AnalysisError(
            "There is no token {token:,}; the tokens of the prompt are 0 to {last:,}.",
            token=token,
            last=run.num_tokens - 1,
        )


def _state(run: UneditedRun, level: int, token: int) -> tuple[Snapshot, int]:
    """State of the pass just before a level, and the index of a token among those that reach it."""
    _check(run, level, token)
    snapshot = run.prefill.snapshots[level]
    found = (snapshot.levels[-1].positions[0] == token).nonzero()
    if not len(found):
        raise AnalysisError(
            "Token {token:,} does not reach Level {level}, because a level around it dropped or merged it. Choose a "
            "token that does, or an outer level.",
            token=token,
            level=level,
        )
    return snapshot, int(found[0, 0])


def _next(run: UneditedRun, hidden: Tensor) -> Tensor:
    """(V,) log-probabilities of the next token after a prompt."""
    log_probabilities: Tensor = run.model.lm_head(hidden[run.num_tokens - 1]).float().log_softmax(-1)
    return log_probabilities
