"""Linear schedules of training-time constants over optimisation steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSchedule:
    """A value that moves linearly from `start` to `stop` over `steps` steps and stays there.

    Attributes:
        start: value at step 0.
        stop: value from step `steps` on.
        steps: length of the ramp, in optimisation steps.
    """

    start: float
    stop: float
    steps: int

    def __call__(self, step: int) -> float:
        """Value at a step, counted from 0."""
        return self.start + (self.stop - self.start) * min(max(step / self.steps, 0.0), 1.0)


BALANCER_PROBABILITY = LinearSchedule(1.0, 0.25, 8_000)
BYPASS_MINIMUM = LinearSchedule(0.9, 0.2, 20_000)
