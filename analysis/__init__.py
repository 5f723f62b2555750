"""What is measured about a run of a SUBLLM. The trace, and figures made from traces, import without torch."""

from .errors import AnalysisError, RunStopped, TraceError
from .trace.trace import (
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
    Trace,
)

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
    "RunStopped",
    "Trace",
    "TraceError",
]
