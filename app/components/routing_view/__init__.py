"""The prompt as text and as a map of blocks by tokens, in the browser: arrays in, no DOM node per token."""

import json
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
_JS = "\n".join((_FOLDER / f"{part}.js").read_text() for part in ("model", "canvas", "text", "map", "lane", "view"))


@dataclass(frozen=True)
class Shown:
    """What the browser shows of a trace.

    Attributes:
        level: number of the span.
        selected: token, or -1.
        until: other end of what is selected; `selected` itself if that is one token.
        colour: key of the channel that colours text and map.
    """

    level: int = 0
    selected: int = -1
    until: int = -1
    colour: str = "score"

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that are selected."""
        if self.selected < 0:
            return ()
        first, last = sorted((self.selected, max(self.until, 0)))
        return tuple(range(first, last + 1))

    @classmethod
    def parse(cls, value: Any, trace: Trace) -> "Shown":
        """What an event or a link says, where it lies inside of the trace; the defaults elsewhere.

        Args:
            value: a mapping with the fields, as strings or numbers, or anything else.
            trace: that it is about.
        """
        fields = value if isinstance(value, Mapping) else {}
        colour = str(fields.get("colour", ""))
        selected = _within(fields.get("selected"), -1, trace.num_tokens - 1)
        until = _within(fields.get("until"), -1, trace.num_tokens - 1)
        return cls(
            _within(fields.get("level"), 0, trace.num_spans - 1),
            selected,
            until if min(selected, until) >= 0 else selected,
            colour if colour in cls.colours(trace) else cls.colour,
        )

    @staticmethod
    def colours(trace: Trace) -> list[str]:
        """What text and map can be coloured by.

        Args:
            trace: of a prompt.
        """
        return list(_channels(trace))


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
    first = st.session_state.setdefault(f"{key} begins with", {})
    if trace.digest not in first:
        first.clear()
        first[trace.digest] = shown
    # the same bytes at every rerun, which Streamlit then does not send again
    data = view_data(trace, first[trace.digest], words)
    result = _component()(data=data, key=key, height="content", on_shown_change=lambda: None)
    said = result.shown or {}
    return Shown.parse(said, trace) if said.get("id") == trace.digest else first[trace.digest]


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return st.components.v2.component("subllm_routing_view", html=_HTML, css=_CSS, js=_JS)


def view_data(trace: Trace, shown: Shown, words: Mapping[str, str]) -> bytes:
    """What the component needs: the length of a header (uint32), the header (JSON), and the arrays one after another.

    The header's `arrays` says of each its type ("u1", "u4", "f2", "f4", little-endian), where it begins after the
    header, and its bytes.

    Args:
        trace: of a prompt.
        shown: what to begin with.
        words: labels by key.
    """
    offsets = _utf16_offsets(trace.prompt)
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
    channels = _channels(trace)
    arrays: dict[str, tuple[str, int, int]] = {}
    parts: list[bytes] = []
    for name, kind, values in (
        ("ids", "u4", trace.token_ids),
        ("starts", "u4", offsets[trace.starts]),
        ("ends", "u4", offsets[trace.ends]),
        ("kept", "u1", trace.kept),
        *(
            (key, "f2" if values.dtype == np.float16 else "f4", values)
            for key, (_, values) in channels.items()
            if key != "kept"
        ),
    ):
        parts.append(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes())
        arrays[name] = (kind, sum(map(len, parts[:-1])), len(parts[-1]))
    header = {
        "id": trace.digest,
        "version": f"{trace.digest} {words['view_token']} {' '.join(channels)}",
        "text": trace.prompt,
        "tokens": trace.num_tokens,
        # only those that the text itself does not say: parts of characters, and tokens without text
        "pieces": {
            index: piece
            for index, (piece, start, end) in enumerate(
                zip(trace.pieces.tolist(), trace.starts.tolist(), trace.ends.tolist(), strict=True)
            )
            if piece != trace.prompt[start:end]
        },
        "arrays": arrays,
        "channels": [
            {"key": key, "rows": rows, "label": words[f"channel_{key}"], "help": words[f"help_{key}"]}
            for key, (rows, _) in channels.items()
        ],
        "blocks": trace.block_spans.tolist(),
        "spans": spans,
        "labels": {key.removeprefix("view_"): text for key, text in words.items() if key.startswith("view_")},
        "shown": vars(shown),
    }
    encoded = json.dumps(header, ensure_ascii=False).encode()
    return b"".join([len(encoded).to_bytes(4, "little"), encoded, *parts])


def _channels(trace: Trace) -> dict[str, tuple[str, np.ndarray]]:
    """What text and map can be coloured by: key, what its rows are, values."""
    channels = {
        "score": ("levels", trace.scores),
        "weight": ("levels", np.where(trace.present, trace.weights, np.nan)),
        "bypass": ("levels", trace.contribution_share),
        "change": ("blocks", trace.change),
        "kept": ("levels", trace.kept),
    }
    if not np.isnan(trace.confidence).all():
        channels["confidence"] = ("blocks", trace.confidence)
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
