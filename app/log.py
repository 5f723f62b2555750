"""The app's log: who did what, what it took and how it ended; never a text that a visitor wrote.

    2026-01-31 12:00:00,000 INFO app: visitor 3: run, 812 tokens, 4.2 s, done

An exception is logged with its type and the lines of code that it went through. Its message is left out, since it can
quote what was being read.
"""

import logging
import os
from collections.abc import Mapping
from traceback import format_tb
from types import TracebackType

from subllm import ConfigurationError

_ExceptionInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class Formatter(logging.Formatter):
    """One line for each record, whatever is in it; an exception has further lines, all of them indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        """The line, with characters escaped that a terminal would obey."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        """Types and lines of code of an exception, and of those that it came from."""
        lines, error = [], ei[1]
        while error is not None:
            lines += [type(error).__qualname__, *"".join(format_tb(error.__traceback__)).splitlines()]
            error = error.__cause__ or error.__context__
        return "\n".join(f"  {printable(line)}" for line in lines)


def printable(text: str) -> str:
    """Text on one line, with control characters and half surrogates written as escapes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def level(environment: Mapping[str, str] = os.environ) -> int:
    """How much is logged.

    Args:
        environment: variables by name.

    Raises:
        ConfigurationError: if there is no such level.
    """
    usual = "WARNING" if environment.get("SUBLLM_PROFILE", "private") == "private" else "INFO"
    name = environment.get("SUBLLM_LOG_LEVEL", usual)
    found = logging.getLevelNamesMapping().get(name.upper())
    if found is None:
        raise ConfigurationError("SUBLLM_LOG_LEVEL is {level!r}; it must be WARNING, INFO, DEBUG or ERROR.", level=name)
    return found


def start() -> None:
    """Give the app's log a format and a level, and the logs of Streamlit the same format, once."""
    own = logging.getLogger("app")
    try:
        own.setLevel(level())
    except ConfigurationError:
        own.setLevel(logging.WARNING)  # the page says what is wrong
    if not own.handlers:
        own.addHandler(logging.StreamHandler())
    for name, log in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(log, logging.Logger) and name.partition(".")[0] in ("app", "streamlit", "uvicorn", "websockets"):
            for handler in log.handlers:
                if not isinstance(handler.formatter, Formatter):
                    handler.setFormatter(Formatter())
