"""The fields that the configurations of trainings and conversions share."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import TrainingError

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Base of a run's configuration.

    Attributes:
        steps: optimisation steps.
        batch_size: sequences per step, over all processes.
        length: tokens per sequence.
        learning_rate: peak of the learning rate.
        precision: one of `PRECISIONS`.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints.
        seed: seed of everything random, the order of the text included.

    Raises:
        TrainingError: if a number that must be positive is not, or the precision is unknown.
    """

    _positive: ClassVar[tuple[str, ...]] = (
        "steps", "batch_size", "length", "learning_rate", "evaluate_every", "save_every",
    )  # fmt: skip

    steps: int
    batch_size: int
    length: int = 512
    learning_rate: float = 1e-3
    precision: str = "float32"
    evaluate_every: int
    save_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self._positive:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or value <= 0:
                raise TrainingError(f"{name} is {value!r}; it must be more than 0.")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}.")
