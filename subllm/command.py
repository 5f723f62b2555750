"""What all commands have in common: a user's mistake becomes one line on standard error and an exit code."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from .errors import TrainingStopped

Arguments = Sequence[str] | None
_MISTAKE, _INTERRUPTED = 1, 130


def command(*expected: type[Exception]) -> Callable[[Callable[[Arguments], None]], Callable[..., int]]:
    """Turn a function into the entry point of a command.

    Args:
        expected: errors that a user can cause, besides `OSError`. Their message is printed.

    Returns:
        A decorator. The function takes the arguments, or None for those of the process; what it becomes returns the
        exit code.
    """

    def decorate(run: Callable[[Arguments], None]) -> Callable[..., int]:
        @wraps(run)
        def main(arguments: Arguments = None) -> int:
            try:
                run(arguments)
            except TrainingStopped as error:
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
                return _INTERRUPTED
            except (*expected, OSError) as error:
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
                return _MISTAKE
            except KeyboardInterrupt:
                return _INTERRUPTED
            return 0

        return main

    return decorate
