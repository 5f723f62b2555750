"""What keeps a run within bounds: its progress, deadline, memory and token ids, and weights without gradients."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from subllm.checkpoints.device import is_out_of_memory
from subllm.errors import PromptError, first_line
from subllm.structure import Structure

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


class Limit:
    """A progress that stops the work at a time limit.

    Args:
        progress: receives the progress; if it has a limit, that one holds as well.
        seconds: time limit; infinity for none.
    """

    def __init__(self, progress: Progress, seconds: float) -> None:
        self._progress, self._seconds = progress, seconds
        self._start = self.clock()

    def __call__(self, share: float, stage: str, **values: object) -> None:
        """See `Progress`.

        Raises:
            RunStopped: after the time limit.
        """
        self.check()
        self._progress(share, stage, **values)

    def clock(self) -> float:
        """Seconds of work, from some moment on."""
        return clock(self._progress)

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return min(self._seconds - (self.clock() - self._start), seconds_left(self._progress))

    def check(self) -> None:
        """Stop the work if its time is up.

        Raises:
            RunStopped: after the time limit.
        """
        if self.left < 0:
            raise RunStopped(
                "The time limit was reached. Shorten the prompt, or ask for less at once; whoever runs the app can "
                "raise SUBLLM_MAX_SECONDS."
            )


def clock(progress: Progress) -> float:
    """Seconds of work, from some moment on: a work that shares its device does not count its waits."""
    return progress.clock() if isinstance(progress, Limit) else time.monotonic()


def seconds_left(progress: Progress) -> float:
    """Seconds until a time limit; infinity if there is none."""
    return progress.left if isinstance(progress, Limit) else math.inf


def steps_reported(
    progress: Progress, structure: Structure, tokens: int, share: float = 1.0, done: int = 0
) -> Callable[[], None]:
    """Report a forward pass, step by step.

    Args:
        progress: receives the progress, now and after every step.
        structure: whose characters are the steps.
        tokens: that the pass reads.
        share: of the whole work.
        done: steps that an earlier pass has done.

    Returns:
        To be called after every step.
    """
    steps = len(structure.text)

    def report() -> None:
        nonlocal done
        progress(share * done / steps, "reading", tokens=f"{tokens:,}", step=done, steps=steps)
        done += 1

    report()
    return report


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


def out_of_memory_reported(tokens: int, model: PreTrainedModel) -> AbstractContextManager[None]:
    """Turn a failed allocation into a message that names the number of tokens, and what would help.

    Args:
        tokens: number of tokens that the model reads.
        model: that reads them.

    Raises:
        RunStopped: when memory runs out.
    """
    return _reported(
        lambda error: RunStopped(
            "Memory ran out on a prompt of {tokens:,} tokens ({error}). {advice}",
            tokens=tokens,
            error=error,
            advice=_advice(model),
        )
    )


def full_device_reported(device: torch.device) -> AbstractContextManager[None]:
    """Turn a failed allocation into a message, where there is no prompt to shorten.

    Raises:
        RunStopped: when memory runs out.
    """
    return _reported(
        lambda error: RunStopped(
            "The memory of {device} ran out ({error}). Free memory there, or make what is measured smaller.",
            device=str(device),
            error=error,
        )
    )


@contextmanager
def _reported(say: Callable[[str], RunStopped]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise say(first_line(error).rstrip(".")) from error


def _advice(model: PreTrainedModel) -> RunStopped:
    """What helps when memory runs out: a dtype of 16 bits cannot be made smaller."""
    if torch.finfo(model.dtype).bits > 16:
        return RunStopped("Shorten the prompt, or choose a smaller dtype.")
    if model.device.type == "cpu":
        return RunStopped("Shorten the prompt, or end other programs.")
    return RunStopped("Shorten the prompt, end other programs on that device, or choose the CPU.")


def ids_on_device(model: PreTrainedModel, token_ids: Sequence[int] | np.ndarray) -> Tensor:
    """Token ids as a row of the model's device, (1, T), after `check_ids`."""
    ids = np.asarray(token_ids, dtype=np.int64)
    check_ids(model, ids)
    return torch.tensor(ids, device=model.device)[None]


def check_ids(model: PreTrainedModel, ids: np.ndarray) -> None:
    """Check that a model has an embedding for each token.

    The CPU refuses another id, but on a GPU it ends all further work of the process.

    Args:
        model: that will read them.
        ids: of any shape, on the host.

    Raises:
        PromptError: if it has none for one of them.
    """
    words = model.config.vocab_size
    wrong = ids[(ids < 0) | (ids >= words)]
    if len(wrong):
        raise PromptError(
            "The text has the token id {token}, and the model has embeddings for the ids 0 to {last:,}. Its tokenizer "
            "has tokens that the model does not know; leave them out of the text.",
            token=int(wrong[0]),
            last=words - 1,
        )
