"""The fields that the configurations of trainings and conversions share."""

from dataclasses import dataclass, fields
from typing import ClassVar, get_type_hints

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
        TrainingError: if a value is not a number, or out of its range, or the precision is unknown.
    """

    _positive: ClassVar[tuple[str, ...]] = (
        "steps", "batch_size", "length", "learning_rate", "evaluate_every", "save_every",
    )  # fmt: skip
    _not_negative: ClassVar[tuple[str, ...]] = ("seed",)

    steps: int
    batch_size: int
    length: int = 512
    learning_rate: float = 1e-3
    precision: str = "float32"
    evaluate_every: int
    save_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for name in (field.name for field in fields(self)):
            kind, value = kinds[name], getattr(self, name)
            if kind is int and type(value) is not int:
                raise TrainingError(f"{name} is {value!r}; it must be a whole number.")
            if kind is float and type(value) not in (int, float):
                raise TrainingError(f"{name} is {value!r}; it must be a number.")
            if name in self._positive and not value > 0:
                raise TrainingError(f"{name} is {value!r}; it must be more than 0.")
            if name in self._not_negative and not value >= 0:
                raise TrainingError(f"{name} is {value!r}; it must not be less than 0.")
        if self.length < 2:
            raise TrainingError(f"length is {self.length}; it must be 2 or more, as a token is predicted from another.")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}.")
