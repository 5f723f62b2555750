"""Runs in a notebook: the report in a frame of its own, whose scripts and styles meet none of the notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..trace.trace import Trace
from .html import report

_HEIGHT = 900  # pixels


@dataclass(frozen=True, eq=False)
class TracePair:
    """Two runs, which a notebook shows side by side.

    Attributes:
        first: one run.
        second: another one, such as the same with edits, or of another checkpoint.
        names: what they are called; by default what their checkpoints are.
    """

    first: Trace
    second: Trace
    names: tuple[str, str] | tuple[()] = ()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What IPython shows."""
        return bundle(self.first, self.second, names=self.names)


def bundle(*traces: Trace, names: Sequence[str] = ()) -> dict[str, str]:
    """What a notebook shows of some runs, by type.

    Args:
        traces: one run, or several to see side by side.
        names: what they are called.
    """
    frame = (
        '<iframe sandbox="allow-scripts allow-downloads" title="subllm" '
        f'style="width: 100%; height: {_HEIGHT}px; border: 0" srcdoc="{escape(report(traces, names=names))}"></iframe>'
    )
    return {"text/plain": "\n".join(map(_line, traces)), "text/html": frame}


def _line(trace: Trace) -> str:
    where = trace.provenance
    edits = " · edited" if where.edits else ""
    return f"Trace of {trace.num_tokens:,} tokens · {where.checkpoint} · {where.structure}{edits}"
