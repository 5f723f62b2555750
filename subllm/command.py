"""What all commands have in common: a user's mistake becomes one line on standard error and an exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from .atomic import is_disk_full
from .errors import DiskFullError, TrainingStopped, first_line

Arguments = Sequence[str] | None
_MISTAKE, _INTERRUPTED = 1, 130


def positive(text: str) -> int:
    """The type of an option that counts something: a whole number, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}; give a whole number, 1 or more")
    return number


def command(
    *expected: type[Exception], mistake: int = _MISTAKE
) -> Callable[[Callable[[Arguments], int | None]], Callable[..., int]]:
    """Turn a function into the entry point of a command.

    Args:
        expected: errors that a user can cause, besides `OSError` and a full disk. Their message is printed.
        mistake: exit code of these errors.

    Returns:
        A decorator. The function takes the arguments, or None for those of the process, and may return an exit code;
        what it becomes returns the exit code, 0 if there is none.
    """

    def decorate(run: Callable[[Arguments], int | None]) -> Callable[..., int]:
        @wraps(run)
        def main(arguments: Arguments = None) -> int:
            try:
                return run(arguments) or 0
            except TrainingStopped as error:
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
                return _INTERRUPTED
            except (*expected, DiskFullError) as error:
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
                return mistake
            except KeyboardInterrupt:
                return _INTERRUPTED
            except Exception as error:
                if is_disk_full(error):
                    line = f"The disk is full ({first_line(error)}). Free some space and run the command again."
                elif isinstance(error, OSError):
                    line = str(error)
                else:
                    raise
                print(f"error: {line}", file=sys.stderr)  # noqa: T201
                return mistake

        return main

    return decorate
