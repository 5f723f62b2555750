"""What is measured about a run of a SUBLLM. The trace, and figures made from traces, import without torch."""

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
