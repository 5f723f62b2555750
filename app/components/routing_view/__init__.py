"""The prompt as text and as a map of blocks by tokens, in the browser: arrays in, no DOM node per token."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from analysis import Trace
from analysis.figures import level_name

_FOLDER = Path(__file__).parent
_HTML, _CSS, _JS = ((_FOLDER / f"view.{kind}").read_text() for kind in ("html", "css", "js"))


def routing_view(trace: Trace, key: str) -> None:
    """Show a trace.

    Args:
        trace: of a prompt.
        key: of the element; the same one keeps the chosen level over reruns.
    """
    _component()(data=view_data(trace), key=key, height="content")


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return st.components.v2.component("subllm_routing_view", html=_HTML, css=_CSS, js=_JS)


def view_data(trace: Trace) -> dict[str, Any]:
    """What the component needs, arrays as base64.

    Args:
        trace: of a prompt.
    """
    share = trace.contribution_norm / np.maximum(trace.stream_norm, 1e-12)
    offsets = _utf16_offsets(trace.prompt)
    spans = []
    for span in range(trace.num_spans):
        inside = _inside(trace, span).nonzero()[0]
        kept = trace.scores[span][trace.kept[span]]
        spans.append(
            {
                "name": level_name(trace, span),
                "parent": int(trace.span_parents[span]),
                "depth": _depth(trace, span),
                "first": int(inside.min(initial=trace.num_blocks)),
                "last": int(inside.max(initial=-1)),
                "kept": int(trace.kept[span].sum()),
                "reached": int(trace.present[span].sum()),
                "edges": np.quantile(kept, [0.2, 0.4, 0.6, 0.8]).tolist() if len(kept) else [],
            }
        )
    return {
        "id": trace.digest,
        "text": trace.prompt,
        "tokens": trace.num_tokens,
        "pieces": trace.pieces.tolist(),
        "ids": trace.token_ids.tolist(),
        "starts": _pack(offsets[trace.starts], np.uint32),
        "ends": _pack(offsets[trace.ends], np.uint32),
        "scores": _pack(trace.scores, np.float32),
        "shares": _pack(share, np.float32),
        "kept": _pack(trace.kept, np.uint8),
        "blocks": trace.block_spans.tolist(),
        "spans": spans,
    }


def _utf16_offsets(text: str) -> np.ndarray:
    """(len + 1,) position of every character in the text as a browser counts: characters beyond U+FFFF are two."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0xFFFF))])


def _pack(array: np.ndarray, dtype: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def _inside(trace: Trace, span: int) -> np.ndarray:
    """(L,) True for the blocks inside a span, nested spans included."""
    members = {span}
    for other in range(span + 1, trace.num_spans):
        if int(trace.span_parents[other]) in members:
            members.add(other)
    return np.isin(trace.block_spans, list(members))


def _depth(trace: Trace, span: int) -> int:
    depth = 1
    while (span := int(trace.span_parents[span])) >= 0:
        depth += 1
    return depth
