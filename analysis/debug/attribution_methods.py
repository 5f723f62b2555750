"""Attribution methods: how much each embedding of the prompt contributes to a target, a class per method.

All but conductance are captum's. Conductance follows the value through all blocks and past all levels at once, where
captum's LayerConductance takes one block at a time; it is checked against that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, Occlusion
from torch import Tensor

from ..guard import Progress
from .conductance import Conductance, conductance
from .target import Target


class Method(StrEnum):
    """Names of the attribution methods, as command lines and links have them."""

    INTEGRATED_GRADIENTS = "integrated gradients"
    INPUT_X_GRADIENT = "input x gradient"
    ABLATION = "ablation"
    OCCLUSION = "occlusion"
    CONDUCTANCE = "conductance"


@dataclass(frozen=True, eq=False)
class Problem:
    """A target and what an attribution of it is made from.

    Attributes:
        target: the number to attribute.
        baseline: (1, T, D) embeddings of the prompt with every token absent.
        groups: (T,) feature of each token, from 0.
        steps: steps of the path integral, for integrated gradients and conductance.
        window: tokens that occlusion hides at once.
        progress: receives the progress; may raise to stop.
    """

    target: Target
    baseline: Tensor
    groups: Tensor
    steps: int
    window: int
    progress: Progress

    @property
    def inputs(self) -> Tensor:
        """(1, T, D) embeddings of the prompt."""
        return self.target.embeddings

    def counted(self, total: int, progress: Progress | None = None) -> Callable[[Tensor], Tensor]:
        """The target as a function that reports progress, expecting so many embeddings in all."""
        done, report = 0, progress or self.progress

        def counted(embeddings: Tensor) -> Tensor:
            nonlocal done
            report(min(done / total, 1.0), "attribution", done=done, total=total)
            done += len(embeddings)
            return self.target(embeddings)

        return counted


class AttributionMethod(ABC):
    """One way to attribute a target to the embeddings of the prompt."""

    needs_gradients = True

    @abstractmethod
    def contributions(self, problem: Problem) -> Tensor:
        """(1, T, D) contribution of every channel of every embedding."""

    def conductance(self, problem: Problem) -> Conductance | None:
        """How the value came about inside the model, for methods that follow it."""
        return None


class _IntegratedGradients(AttributionMethod):
    def contributions(self, problem: Problem) -> Tensor:
        return _integrated(problem, problem.progress)


class _InputXGradient(AttributionMethod):
    def contributions(self, problem: Problem) -> Tensor:
        found: Tensor = InputXGradient(problem.counted(1)).attribute(problem.inputs.clone().requires_grad_())
        return found


class _Ablation(AttributionMethod):
    needs_gradients = False

    def contributions(self, problem: Problem) -> Tensor:
        inputs, groups = problem.inputs, problem.groups
        mask = groups[None, :, None].expand_as(inputs)
        ablation = FeatureAblation(problem.counted(int(groups.max()) + 2))
        values = ablation.attribute(inputs, baselines=problem.baseline, feature_mask=mask)
        sizes = torch.bincount(groups)[groups][None, :, None]  # captum gives a feature's value to each of its channels
        return values / inputs.shape[2] / sizes.to(values)


class _Occlusion(AttributionMethod):
    needs_gradients = False

    def contributions(self, problem: Problem) -> Tensor:
        inputs = problem.inputs
        width = min(problem.window, inputs.shape[1])
        occlusion = Occlusion(problem.counted(inputs.shape[1] - width + 2))
        shape = (width, inputs.shape[2])
        values: Tensor = occlusion.attribute(inputs, sliding_window_shapes=shape, baselines=problem.baseline)
        return values / inputs.shape[2]


class _Conductance(AttributionMethod):
    def contributions(self, problem: Problem) -> Tensor:
        def second_half(share: float, stage: str, **values: object) -> None:
            problem.progress((1 + share) / 2, stage, **values)

        return _integrated(problem, second_half)

    def conductance(self, problem: Problem) -> Conductance:
        def first_half(share: float, stage: str, **values: object) -> None:
            problem.progress(share / 2, stage, **values)

        return conductance(problem.target, problem.inputs, problem.baseline, problem.steps, first_half)


METHODS: dict[Method, AttributionMethod] = {
    Method.INTEGRATED_GRADIENTS: _IntegratedGradients(),
    Method.INPUT_X_GRADIENT: _InputXGradient(),
    Method.ABLATION: _Ablation(),
    Method.OCCLUSION: _Occlusion(),
    Method.CONDUCTANCE: _Conductance(),
}


def _integrated(problem: Problem, progress: Progress) -> Tensor:
    """(1, T, D) integrated gradients, one embedding at a time."""
    method = IntegratedGradients(problem.counted(problem.steps, progress))
    found: Tensor = method.attribute(problem.inputs, problem.baseline, n_steps=problem.steps, internal_batch_size=1)
    return found
