"""What is measured about a run of a SUBLLM. The trace, and figures made from traces, import without torch."""

from .errors import AnalysisError, RunStopped, TraceError
from .trace import Cost, Provenance, Trace

__all__ = ["AnalysisError", "Cost", "Provenance", "RunStopped", "Trace", "TraceError"]
