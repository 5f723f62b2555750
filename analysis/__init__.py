"""What is measured about a run of a SUBLLM. The trace, and figures made from traces, import without torch."""

from typing import TYPE_CHECKING, Any

from .errors import AnalysisError, RunStopped, TraceError
from .trace.parts import (
    Agreement,
    Blocks,
    Continuation,
    Cost,
    Costs,
    Likelihood,
    Predictions,
    Prompt,
    Provenance,
    Routing,
)
from .trace.trace import Trace

if TYPE_CHECKING:
    from .report.notebook import TracePair
    from .run import RunOptions, record_trace

__all__ = [
    "Agreement",
    "AnalysisError",
    "Blocks",
    "Continuation",
    "Cost",
    "Costs",
    "Likelihood",
    "Predictions",
    "Prompt",
    "Provenance",
    "Routing",
    "RunOptions",
    "RunStopped",
    "Trace",
    "TraceError",
    "TracePair",
    "record_trace",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch at its first use (PEP 562)."""
    if name in ("RunOptions", "record_trace"):
        from . import run  # noqa: PLC0415

        return getattr(run, name)
    if name == "TracePair":
        from .report.notebook import TracePair  # noqa: PLC0415

        return TracePair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _in_notebooks(trace: Trace) -> dict[str, str]:
    from .report.notebook import bundle  # noqa: PLC0415

    return bundle(trace)


Trace.in_notebooks = _in_notebooks


def __dir__() -> list[str]:
    return __all__
