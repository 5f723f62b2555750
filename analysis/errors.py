"""What a user of the package can cause, beyond what `subllm.errors` names.

AnalysisError
├── TraceError    a trace file that cannot be read
└── RunStopped    a run that met its time limit or was stopped
"""


class AnalysisError(Exception):
    """Base class of what a user of the package can cause; its message is kept like that of a `SubllmError`."""

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(message.format(**values) if values else message)
        self.message, self.values = message, values


class TraceError(AnalysisError, ValueError):
    """A trace file that cannot be read."""


class RunStopped(AnalysisError, RuntimeError):  # noqa: N818 - it is no fault
    """A run that met its time limit, ran out of memory, or was stopped."""
