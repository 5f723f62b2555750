"""Why: what in the prompt made a token's importance score, or the next token, what it is.

Methods are captum's; conductance, here through all blocks and past all levels at once, is checked against captum's,
which takes one block at a time. The features are the embeddings of the prompt's tokens, alone or merged into words.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, Occlusion
from torch import Tensor

from subllm import SubllmForCausalLM
from subllm.checkpoints.load import dtype_name

from ..cost.measure import free_bytes, peak_bytes
from ..cost.roofline import activation_bytes, dense, level_tokens
from ..errors import AnalysisError
from ..guard import Progress, frozen, out_of_memory_said, silent
from .conductance import Flow, conductance
from .target import Explained, Question, baseline_of

METHODS = ("integrated gradients", "input x gradient", "ablation", "occlusion", "conductance")
_STEPS = 32


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much every part of the prompt contributes.

    Attributes:
        groups: (T,) feature of each token: tokens or words, from 0.
        values: (F,) contribution of each feature to the value, in its unit (score, or nats).
        flow: what came through each block and past each level, for conductance.
        value: of what is explained.
        baseline: the same with every feature at its baseline.
        delta: sum of the contributions minus (value - baseline); 0 for a method that adds up exactly.
        seconds: that it took.
        peak_bytes: most memory of tensors at once; 0 if it was not measured.
    """

    groups: np.ndarray
    values: np.ndarray
    flow: Flow | None
    value: float
    baseline: float
    delta: float
    seconds: float
    peak_bytes: int

    @property
    def by_token(self) -> np.ndarray:
        """(T,) contribution of each token's feature, divided among its tokens."""
        return (self.values / np.maximum(np.bincount(self.groups), 1))[self.groups]


def attribute(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    question: Question,
    method: str = "integrated gradients",
    held: str = "kept",
    *,
    baseline: str = "mean",
    groups: np.ndarray | None = None,
    steps: int = _STEPS,
    window: int = 3,
    measure_memory: bool = False,
    progress: Progress = silent,
) -> Attribution:
    """Explain one value by the prompt's tokens or words.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        question: what is to be explained.
        method: one of `METHODS`.
        held: one of `HELD`.
        baseline: what a feature is replaced with: "mean" embedding, "zero", or the "end" of text token's embedding.
        groups: (T,) feature of each token, from 0; every token by itself if left out.
        steps: of the integral, for integrated gradients and conductance.
        window: tokens that occlusion hides at once.
        measure_memory: measure the peak, too, which takes longer.
        progress: told how far it is; may raise to stop.

    Raises:
        AnalysisError: if an argument is none of those allowed, or memory would not suffice.
        RunStopped: when memory runs out all the same.
    """
    if method not in METHODS:
        raise AnalysisError(
            "There is no method {method!r}; allowed are {methods}.", method=method, methods=", ".join(METHODS)
        )
    groups = np.arange(len(token_ids)) if groups is None else groups
    read = question.token + 1  # the tokens that can matter
    gradients = method in ("integrated gradients", "input x gradient", "conductance")
    if gradients:
        _check_memory(model, read)
    explained = Explained(model, token_ids, question, held)
    inputs = explained.embeddings
    base = baseline_of(model, inputs, baseline)
    flow: Flow | None = None
    found: list[Tensor] = []

    def run() -> None:
        nonlocal flow
        if method == "conductance":
            flow = conductance(explained, inputs, base, steps, progress)
            found.append(_integrated(explained, inputs, base, steps, silent))
        elif method == "integrated gradients":
            found.append(_integrated(explained, inputs, base, steps, progress))
        elif method == "input x gradient":
            found.append(InputXGradient(explained).attribute(inputs.clone().requires_grad_()))
        elif method == "ablation":
            mask = torch.tensor(groups[:read], device=inputs.device)[None, :, None].expand_as(inputs)
            counted = _counted(explained, int(groups[:read].max()) + 2, progress)
            values = FeatureAblation(counted).attribute(inputs, baselines=base, feature_mask=mask)
            found.append(
                values
                / inputs.shape[2]
                / torch.tensor(np.bincount(groups[:read])[groups[:read]])[None, :, None].to(values)
            )
        else:
            width = min(window, inputs.shape[1])
            counted = _counted(explained, inputs.shape[1] - width + 2, progress)
            shape = (width, inputs.shape[2])
            found.append(
                Occlusion(counted).attribute(inputs, sliding_window_shapes=shape, baselines=base) / inputs.shape[2]
            )

    peak = 0
    started = time.perf_counter()
    with frozen(model), out_of_memory_said(len(token_ids)), torch.set_grad_enabled(gradients):
        if measure_memory:
            peak = peak_bytes(run, inputs.device)
        else:
            run()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        value, base_value = (explained(each).item() for each in (inputs, base))
    per_token = np.zeros(len(token_ids))
    per_token[:read] = found[0][0].detach().float().sum(-1).cpu().numpy()
    values = np.bincount(groups, weights=per_token).astype(np.float32)
    return Attribution(
        groups, values, flow, value, base_value, float(values.sum()) - (value - base_value), seconds, peak
    )


def _integrated(explained: Explained, inputs: Tensor, base: Tensor, steps: int, progress: Progress) -> Tensor:
    counted = _counted(explained, steps, progress)
    return IntegratedGradients(counted).attribute(inputs, base, n_steps=steps, internal_batch_size=1)


def _counted(function: Explained, total: int, progress: Progress) -> Callable[[Tensor], Tensor]:
    done = 0

    def counted(embeddings: Tensor) -> Tensor:
        nonlocal done
        progress(min(done / total, 1.0), "attribution", done=done, total=total)
        done += len(embeddings)
        return function(embeddings)

    return counted


def _check_memory(model: SubllmForCausalLM, tokens: int) -> None:
    larger, dtype = dense(model.config), dtype_name(model)
    need, free = activation_bytes(larger, level_tokens(larger, tokens), 1, dtype), free_bytes(model.device)
    if need > free:
        raise AnalysisError(
            "Gradients through {tokens:,} tokens would take about {need:,.1f} GB, and {free:,.1f} GB are free. Use "
            "ablation or occlusion, which need no gradients, or shorten the prompt.",
            tokens=tokens,
            need=need / 1e9,
            free=free / 1e9,
        )
