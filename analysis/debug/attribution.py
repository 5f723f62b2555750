"""What in the prompt made a token's importance score, or the next token, what it is.

The features are the embeddings of the prompt's tokens, alone or merged into words.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm import SubllmForCausalLM
from subllm.checkpoints.device import dtype_name

from ..cost.measure import finish, free_bytes, peak_bytes
from ..cost.sizes import activation_bytes, level_tokens, without_levels
from ..errors import AnalysisError
from ..guard import Progress, clock, frozen, out_of_memory_reported, silent
from .attribution_methods import METHODS, Method, Problem
from .conductance import Conductance
from .edit_override import EditOverride
from .target import Baseline, Held, Question, Target, baseline_of

STEPS = 32  # of the path integral


@dataclass(frozen=True, eq=False)
class Attribution:
    """Contributions of the parts of a prompt to a value.

    Attributes:
        groups: (T,) feature of each token, from 0.
        values: (F,) contribution of each feature, in the unit of the value (score, or nats).
        conductance: what passed through each block and past each level; None for other methods.
        answer: id of the next token that the value is about; None for a score.
        value: the value that is explained.
        baseline: the value with every feature at its baseline.
        delta: sum of the contributions minus (value - baseline), the convergence delta; 0 for an exact method.
        seconds: run time of the method.
        peak_bytes: peak memory of tensors; 0 if it was not measured.
    """

    groups: np.ndarray
    values: np.ndarray
    conductance: Conductance | None
    answer: int | None
    value: float
    baseline: float
    delta: float
    seconds: float
    peak_bytes: int


def attribute(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    question: Question,
    method: Method | str = Method.INTEGRATED_GRADIENTS,
    held: Held | str = Held.KEPT,
    *,
    baseline: Baseline | str = Baseline.MEAN,
    groups: np.ndarray | None = None,
    steps: int = STEPS,
    window: int = 3,
    override: EditOverride | None = None,
    measure_memory: bool = False,
    progress: Progress = silent,
) -> Attribution:
    """Attribute one value to the prompt's tokens or words.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        question: the value.
        method: the attribution method.
        held: what is held fixed while embeddings are replaced.
        baseline: the embedding that replaces that of a feature.
        groups: (T,) feature of each token, from 0; by default every token is a feature.
        steps: steps of the path integral, for integrated gradients and conductance.
        window: tokens that occlusion hides at once.
        override: edits of the run that is explained; none if left out.
        measure_memory: measure the peak memory, which takes longer.
        progress: receives the progress; may raise to stop.

    Raises:
        AnalysisError: if an argument is not among those allowed, or the memory would not suffice.
        PromptError: if the model has no embedding for a token.
        RunStopped: when memory runs out nevertheless.
    """
    if method not in [*Method]:
        raise AnalysisError(
            "There is no method {method!r}; allowed are {methods}.", method=method, methods=", ".join(Method)
        )
    chosen = METHODS[Method(method)]
    groups = np.arange(len(token_ids)) if groups is None else groups
    read = question.read
    if chosen.needs_gradients:
        _check_memory(model, read)
    found: list[tuple[Conductance | None, Tensor]] = []
    peaks = [0]
    with frozen(model), out_of_memory_reported(len(token_ids), model):
        target = Target(model, token_ids, question, held, override)
        inputs = target.embeddings
        base = baseline_of(model, inputs, baseline)
        problem = Problem(target, base, torch.tensor(groups[:read], device=inputs.device), steps, window, progress)

        def run() -> None:
            found.append((chosen.conductance(problem), chosen.contributions(problem)))

        def measured() -> None:
            peaks.append(peak_bytes(run, inputs.device))

        with torch.set_grad_enabled(chosen.needs_gradients):
            if measure_memory and chosen.needs_gradients:  # the first backward pass of all makes workspaces
                leaf = inputs.clone().requires_grad_()
                torch.autograd.grad(target(leaf).sum(), leaf)
            finish(inputs.device)
            began = clock(progress)
            (measured if measure_memory else run)()
            finish(inputs.device)
            seconds = clock(progress) - began
        with torch.no_grad():
            value, base_value = (target(each).item() for each in (inputs, base))
    followed, contributions = found[0]
    per_token = np.zeros(len(token_ids))
    per_token[:read] = contributions[0].detach().float().sum(-1).cpu().numpy()
    values = np.bincount(groups, weights=per_token).astype(np.float32)
    delta = float(values.sum()) - (value - base_value)
    answer = target.answer if question.level is None else None
    return Attribution(groups, values, followed, answer, value, base_value, delta, seconds, peaks[-1])


def _check_memory(model: SubllmForCausalLM, tokens: int) -> None:
    larger, dtype = without_levels(model.config), dtype_name(model)
    need, free = activation_bytes(larger, level_tokens(larger, tokens), 1, dtype), free_bytes(model.device)
    if need > free:
        raise AnalysisError(
            "Gradients through {tokens:,} tokens would take about {need:,.1f} GB, and {free:,.1f} GB are free. Use "
            "ablation or occlusion, which need no gradients, or shorten the prompt.",
            tokens=tokens,
            need=need / 1e9,
            free=free / 1e9,
        )
