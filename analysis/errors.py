"""Errors that a user of the package can cause, beyond those of `subllm.errors`.

AnalysisError
├── CorpusError   a folder of corpus results that cannot be read or continued, or texts without a document
├── TraceError    a trace file that cannot be read
└── RunStopped    a run that reached its time limit, ran out of memory, or was stopped
"""


class AnalysisError(Exception):
    """Base class of errors that a user can cause; the message and its values are kept apart as in `SubllmError`."""

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(message.format(**values) if values else message)
        self.message, self.values = message, values


class CorpusError(AnalysisError, ValueError):
    """A folder of corpus results that cannot be read or continued, or texts without a document."""


class TraceError(AnalysisError, ValueError):
    """A trace file that cannot be read."""


class RunStopped(AnalysisError, RuntimeError):  # noqa: N818 - it is no fault
    """A run that reached its time limit, ran out of memory, or was stopped."""
