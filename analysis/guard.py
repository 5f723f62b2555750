"""What keeps a run in bounds: its progress, its deadline, the memory it may take, and weights that stay as they are."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from .errors import RunStopped


class Progress(Protocol):
    """Told what a run is doing."""

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """Take note.

        Args:
            share: done, 0 to 1.
            stage: "reading", "continuing", "memory", "timing", "predictions" or "lens".
            **values: numbers that say how far the stage is, by name.
        """


def silent(share: float, stage: str, **values: object) -> None:
    """Progress that nobody looks at."""


def check_time(deadline: float, where: str, **values: object) -> None:
    """Stop a run that takes too long.

    Args:
        deadline: by `time.monotonic`.
        where: the run is, as a part of the message with `str.format` placeholders.
        **values: for the placeholders.

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
    """A model whose weights ask for no gradients, so that only what lies between is kept for a backward pass.

    Args:
        model: left as it was found.
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
def out_of_memory_said(tokens: int) -> Iterator[None]:
    """Turn a failed allocation into a message.

    Args:
        tokens: of the prompt.

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
                error=str(error).splitlines()[0],
            ) from error
        raise
