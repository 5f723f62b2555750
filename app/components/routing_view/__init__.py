"""The prompt as text and as a map of blocks by tokens, in the browser: arrays in, no DOM node per token."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from analysis import Trace
from analysis.figures import level_name

_FOLDER = Path(__file__).parent
_HTML, _CSS = ((_FOLDER / f"view.{kind}").read_text() for kind in ("html", "css"))
_JS = "\n".join((_FOLDER / f"{part}.js").read_text() for part in ("model", "text", "map", "view"))


@dataclass(frozen=True)
class Shown:
    """What the browser shows of a trace.

    Attributes:
        level: number of the span.
        selected: token, or -1.
        colour: key of the channel that colours text and map.
    """

    level: int = 0
    selected: int = -1
    colour: str = "score"

    @classmethod
    def parse(cls, value: Any, trace: Trace) -> "Shown":
        """What an event or a link says, where it lies inside of the trace; the defaults elsewhere.

        Args:
            value: a mapping with the fields, as strings or numbers, or anything else.
            trace: that it is about.
        """
        fields = value if isinstance(value, Mapping) else {}
        colour = str(fields.get("colour", ""))
        return cls(
            _within(fields.get("level"), 0, trace.num_spans - 1),
            _within(fields.get("selected"), -1, trace.num_tokens - 1),
            colour if colour in _channels(trace) else cls.colour,
        )


def routing_view(trace: Trace, shown: Shown, words: Mapping[str, str], key: str) -> Shown:
    """Show a trace.

    Args:
        trace: of a prompt.
        shown: what to begin with when the trace is new; after that the browser decides.
        words: labels by key.
        key: of the element.

    Returns:
        What the browser shows now.
    """
    result = _component()(data=view_data(trace, shown, words), key=key, height="content", on_shown_change=lambda: None)
    return Shown.parse(result.shown, trace) if result.shown else shown


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return st.components.v2.component("subllm_routing_view", html=_HTML, css=_CSS, js=_JS)


def view_data(trace: Trace, shown: Shown, words: Mapping[str, str]) -> dict[str, Any]:
    """What the component needs, arrays as base64.

    Args:
        trace: of a prompt.
        shown: what to begin with.
        words: labels by key.
    """
    offsets = _utf16_offsets(trace.prompt)
    plain = [trace.prompt[start:end] for start, end in zip(trace.starts, trace.ends, strict=True)]
    spans = []
    for span in range(trace.num_spans):
        inside = _inside(trace, span).nonzero()[0]
        name = level_name(trace, span, words)
        kept, reached = f"{trace.kept[span].sum():,}", f"{trace.present[span].sum():,}"
        spans.append(
            {
                "name": name,
                "title": words["view_kept_of"].format(level=name, kept=kept, reached=reached),
                "parent": int(trace.span_parents[span]),
                "depth": _depth(trace, span),
                "first": int(inside.min(initial=trace.num_blocks)),
                "last": int(inside.max(initial=-1)),
            }
        )
    return {
        "id": trace.digest + words["view_token"],
        "text": trace.prompt,
        "tokens": trace.num_tokens,
        # only those that the text itself does not say: parts of characters, and tokens without text
        "pieces": {i: str(piece) for i, piece in enumerate(trace.pieces) if piece != plain[i]},
        "ids": _pack(trace.token_ids, np.int32),
        "starts": _pack(offsets[trace.starts], np.uint32),
        "ends": _pack(offsets[trace.ends], np.uint32),
        "kept": _pack(trace.kept, np.uint8),
        "channels": [
            {"key": key, "rows": rows, "label": words[f"channel_{key}"], "values": _pack(values, np.float32)}
            for key, (rows, values) in _channels(trace).items()
        ],
        "blocks": trace.block_spans.tolist(),
        "spans": spans,
        "labels": {key.removeprefix("view_"): text for key, text in words.items() if key.startswith("view_")},
        "level": shown.level,
        "selected": shown.selected,
        "colour": shown.colour,
    }


def _channels(trace: Trace) -> dict[str, tuple[str, np.ndarray]]:
    """What text and map can be coloured by: key, what its rows are, values."""
    channels = {
        "score": ("levels", trace.scores),
        "weight": ("levels", np.where(trace.present, trace.weights, np.nan)),
        "bypass": ("levels", trace.contribution_share),
        "change": ("blocks", trace.change),
    }
    if not np.isnan(trace.divergence).all():
        channels |= {"surprisal": ("all", trace.surprisal), "divergence": ("all", trace.divergence)}
    return channels


def _within(value: Any, low: int, high: int) -> int:
    """A whole number inside of limits; the lower one for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return low
    return number if low <= number <= high else low


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
