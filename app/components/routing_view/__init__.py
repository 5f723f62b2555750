"""The prompt as text and as a map of blocks by tokens, drawn in the browser from packed arrays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from analysis import Routing, Trace
from analysis.debug.edits import Edit
from analysis.figures.trace import level_name
from analysis.trace.parts import UNTOUCHED
from app.components.modules import join

_FOLDER = Path(__file__).parent
_HTML, _CSS = ((_FOLDER / f"view.{kind}").read_text() for kind in ("html", "css"))
_JS = join(_FOLDER / "view.js")
_DIGITS = 9  # of a number in an event or a link


@dataclass(frozen=True)
class Shown:
    """What the browser shows of a trace.

    Attributes:
        level: number of the level, from 1.
        selected: token; None if none is.
        until: other end of what is selected; `selected` itself if that is one token.
        colour: key of the channel that colours text and map.
    """

    level: int = 1
    selected: int | None = None
    until: int | None = None
    colour: str = "score"

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that are selected."""
        if self.selected is None:
            return ()
        until = self.selected if self.until is None else self.until
        return tuple(range(min(self.selected, until), max(self.selected, until) + 1))

    @classmethod
    def parse(cls, value: Any, trace: Trace) -> "Shown":
        """What an event or a link says, with defaults for what the trace does not have.

        Args:
            value: a mapping with the fields, as strings or numbers, or anything else.
            trace: trace that is shown.
        """
        fields = value if isinstance(value, Mapping) else {}
        colours, colour = cls.colours(trace), fields.get("colour", cls.colour)
        selected, until = (_number(fields.get(name), 0, trace.num_tokens - 1) for name in ("selected", "until"))
        return cls(
            level=_number(fields.get("level"), 1, trace.routing.num_levels) or cls.level,
            selected=selected,
            until=selected if selected is None or until is None else until,
            colour=colour if isinstance(colour, str) and colour in colours else colours[0],
        )

    @staticmethod
    def colours(trace: Trace) -> list[str]:
        """What text and map can be coloured by."""
        return [channel.key for channel in _channels(trace)]


@dataclass(frozen=True)
class Exchange:
    """What was exchanged with the browser about one element, which is kept for the next run of the page.

    Attributes:
        subject: `Trace.subject` of the trace that was shown.
        sent: what the browser was asked to show.
        received: what the browser shows since then.
    """

    subject: str
    sent: Shown
    received: Shown


def routing_view(trace: Trace, shown: Shown, before: Exchange | None, words: Mapping[str, str], key: str) -> Exchange:
    """Show a trace.

    Args:
        trace: trace of a prompt.
        shown: what is to be shown. The browser takes it over if it is not what it shows already.
        before: what was exchanged in the last run of the page; None if the element is new.
        words: labels by key.
        key: key of the element.
    """
    sent = shown
    if before and before.subject == trace.subject and before.received == shown and key in st.session_state:
        sent = before.sent  # the same bytes as before, which Streamlit does not send again; a reopened page has no key
    result = _component()(data=view_data(trace, sent, words), key=key, height="content", on_shown_change=lambda: None)
    answer = result.shown if isinstance(result.shown, Mapping) else {}
    current = answer.get("id") == trace.subject and answer.get("told") == vars(sent)
    return Exchange(trace.subject, sent, Shown.parse(answer, trace) if current else sent)


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    return st.components.v2.component("subllm_routing_view", html=_HTML, css=_CSS, js=_JS)


def view_data(trace: Trace, shown: Shown, words: Mapping[str, str]) -> bytes:
    """The component's data: the length of a header (uint32), the header (JSON), and the arrays one after another.

    The header's `arrays` says of each its type ("u1", "u4", "f2", "f4", little-endian), where it begins after the
    header, and its bytes. Its `id` is the same for all edits of a prompt; its `version` changes with any array.

    Args:
        trace: trace of a prompt.
        shown: what to show first.
        words: labels by key.
    """
    prompt, routing = trace.prompt, trace.routing
    offsets = _utf16_offsets(prompt.text)
    channels = _channels(trace)
    arrays: dict[str, tuple[str, int, int]] = {}
    parts: list[bytes] = []
    for name, kind, values in (
        ("ids", "u4", prompt.token_ids),
        ("starts", "u4", offsets[prompt.starts]),
        ("ends", "u4", offsets[prompt.ends]),
        ("reached", "u1", routing.reached),
        ("kept", "u1", routing.kept),
        ("edited", "u1", routing.edited),
        *((each.key, each.kind, each.values) for each in channels if each.values is not routing.kept),
    ):
        parts.append(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes())
        arrays[name] = (kind, sum(map(len, parts[:-1])), len(parts[-1]))
    header = {
        "id": trace.subject,
        "version": f"{trace.digest} {words['view_token']}",
        "text": prompt.text,
        "tokens": trace.num_tokens,
        # only those that the text itself does not say: parts of characters, and tokens without text
        "pieces": {
            index: piece
            for index, (piece, start, end) in enumerate(
                zip(prompt.pieces.tolist(), prompt.starts.tolist(), prompt.ends.tolist(), strict=True)
            )
            if piece != prompt.text[start:end]
        },
        "arrays": arrays,
        "channels": [
            {"key": each.key, "rows": each.rows, "label": words[each.label], "help": words[each.help]}
            for each in channels
        ],
        "blocks": routing.block_levels.tolist(),
        "levels": _levels(trace, words),
        "labels": {key.removeprefix("view_"): text for key, text in words.items() if key.startswith("view_")},
        "shown": vars(shown),
    }
    encoded = json.dumps(header, ensure_ascii=False).encode()
    return b"".join([len(encoded).to_bytes(4, "little"), encoded, *parts])


@dataclass(frozen=True, eq=False)
class _Channel:
    """A quantity that text and map can be coloured by.

    Attributes:
        key: key of the channel.
        rows: what the rows of the values are: "levels", "blocks", or "all" for one row.
        values: (rows, T), or (T,).
        reference: what the values are measured against, where that is said.
    """

    key: str
    rows: str
    values: np.ndarray
    reference: str = ""

    @property
    def kind(self) -> str:
        """Type of the values in the browser."""
        return "f2" if self.values.dtype == np.float16 else "f4"

    @property
    def label(self) -> str:
        """Key of the label."""
        return f"channel_{self.key}{self.reference}"

    @property
    def help(self) -> str:
        """Key of the help."""
        return f"help_{self.key}{self.reference}"


def _channels(trace: Trace) -> list[_Channel]:
    """The channels of a trace; those with rows for levels come first."""
    routing, blocks = trace.routing, trace.blocks
    channels = [_Channel("score", "levels", routing.scores)] if any(map(routing.scores_tokens, routing.levels)) else []
    channels += [
        _Channel("weight", "levels", routing.weights),
        _Channel("bypass", "levels", routing.contribution_share),
        _Channel("kept", "levels", routing.kept),
    ]
    if blocks is not None:
        channels.append(_Channel("change", "blocks", blocks.change))
        if blocks.confidence is not None:
            channels.append(_Channel("confidence", "blocks", blocks.confidence))
    if trace.likelihood is not None:
        channels.append(_Channel("surprisal", "all", trace.likelihood.surprisal))
    if trace.agreement is not None:
        reference = "_untouched" if trace.agreement.reference == UNTOUCHED else ""
        channels.append(_Channel("divergence", "all", trace.agreement.divergence, reference))
    return channels


def _levels(trace: Trace, words: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the header says of each level."""
    routing, edited = trace.routing, _edited_levels(trace)
    block_levels, depths = routing.block_levels, [0]
    levels = []
    for level, parent in zip(routing.levels, routing.parents.tolist(), strict=True):
        depths.append(depths[parent] + 1)
        inside = np.isin(block_levels, _with_inner(routing, level)).nonzero()[0]
        name = level_name(trace, level, words)
        kept, reached = (f"{each[level - 1].sum():,}" for each in (routing.kept, routing.reached))
        title = words["view_kept_of"].format(level=name, kept=kept, reached=reached)
        levels.append(
            {
                "level": level,
                "name": name,
                "title": words["view_levelEdited"].format(title=title) if level in edited else title,
                "parent": parent,
                "depth": depths[level],
                "first": int(inside.min(initial=routing.num_blocks)),
                "last": int(inside.max(initial=-1)),
                "router": str(routing.routers[level - 1]),
                "threshold": float(routing.thresholds[level - 1]) if routing.scores_tokens(level) else None,
                "edited": level in edited,
            }
        )
    return levels


def _edited_levels(trace: Trace) -> set[int]:
    """Levels that an edit changes as a whole: threshold, retention, bypass, or routing off."""
    edits = [Edit.parse(edit) for edit in trace.provenance.edits]
    return {
        level for level in trace.routing.levels for edit in edits if not edit.kind.names_tokens and edit.applies(level)
    }


def _with_inner(routing: Routing, level: int) -> list[int]:
    """A level and those inside it."""
    found = [level]
    for other in routing.levels[level:]:
        if routing.parents[other - 1] in found:
            found.append(other)
    return found


def _number(value: Any, low: int, high: int) -> int | None:
    """A whole number within limits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None


def _utf16_offsets(text: str) -> np.ndarray:
    """(len + 1,) position of every character in the text as a browser counts: characters beyond U+FFFF are two."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0xFFFF))])
