"""What keeps a run within bounds: its progress, its deadline, its memory, and weights that ask for no gradients."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from subllm.errors import first_line

from .errors import RunStopped


class Progress(Protocol):
    """A function that receives the progress of a run. It may raise to stop the run."""

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """Receive the progress.

        Args:
            share: share of the work that is done, 0 to 1.
            stage: name of the stage, such as "reading", "continuing", "timing" or "lens".
            **values: numbers for the stage's message, by name.
        """


def silent(share: float, stage: str, **values: object) -> None:
    """Ignore the progress."""


def check_time(deadline: float, where: str, **values: object) -> None:
    """Stop a run at its time limit.

    Args:
        deadline: time limit, by `time.monotonic`.
        where: the place that the run has reached, a part of the message with `str.format` placeholders.
        **values: values of the placeholders.

    Raises:
        RunStopped: after the deadline.
    """
    if time.monotonic() > deadline:
        raise RunStopped(
            "The run reached its time limit {where}. Shorten the prompt or the continuation, or raise "
            "SUBLLM_MAX_SECONDS.",
            where=RunStopped(where, **values),
        )


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Turn off the gradients of all weights while the context is open.

    A backward pass then keeps only what lies between its input and output. The weights are left as they were found.
    """
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def out_of_memory_reported(tokens: int) -> Iterator[None]:
    """Turn a failed allocation into a message that names the number of tokens.

    Raises:
        RunStopped: when memory runs out.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunStopped(
                "Memory ran out on a prompt of {tokens:,} tokens ({error}). "
                "Shorten the prompt, or choose a smaller dtype.",
                tokens=tokens,
                error=first_line(error),
            ) from error
        raise
