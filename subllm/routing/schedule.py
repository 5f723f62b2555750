"""Values that change over the steps of training."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearSchedule:
    """A value that moves linearly from `start` to `stop` over `steps` steps and stays there.

    Attributes:
        start: value at step 0.
        stop: value from step `steps` on.
        steps: length of the ramp, in optimisation steps; with 0 the value is `stop` from the beginning.
    """

    start: float
    stop: float
    steps: int

    def __call__(self, step: int) -> float:
        """Value at a step, counted from 0."""
        if step >= self.steps:
            return self.stop
        return self.start + (self.stop - self.start) * max(step / self.steps, 0.0)


class TrainingSchedule(nn.Module):
    """A schedule that counts the optimisation steps of the module it belongs to; checkpoints keep the count.

    A step begins with the first training pass after the gradients were cleared, so passes that accumulate gradients
    count once, and passes without gradients do not count. Where a framework hides gradients from the forward pass
    (sharded parameters), every pass counts. Gradients must be cleared by setting them to None, as PyTorch does by
    default: after `zero_grad(set_to_none=False)` no step begins.

    Args:
        bounds: value at the first step, and value from step `steps` on.
        steps: length of the ramp.
    """

    step: Tensor

    def __init__(self, bounds: list[float], steps: int) -> None:
        super().__init__()
        start, stop = bounds
        self.schedule = LinearSchedule(start, stop, steps)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))  # steps begun
        self._known = self.step, -1, 0  # the count on the host, of this tensor in this version

    def forward(self, parameter: Tensor) -> float:
        """Value in the training pass that begins now.

        Args:
            parameter: parameter of the module; a new step begins if it is trained and its gradient has been cleared.
        """
        if parameter.requires_grad and torch.is_grad_enabled() and parameter.grad is None:
            begun = self._begun() + 1
            self.step += 1
            self._known = self.step, self.step._version, begun
        return self.schedule(max(self._begun() - 1, 0))

    def _begun(self) -> int:
        """The count; the host waits for the device only if others have written it."""
        tensor, version, begun = self._known
        if tensor is not self.step or version != self.step._version:
            begun = int(self.step)
            self._known = self.step, self.step._version, begun
        return begun
