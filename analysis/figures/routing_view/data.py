"""What the browser gets of a trace: packed arrays, and what it is asked to show of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...trace.parts import UNTOUCHED, Routing
from ...trace.trace import Trace
from ..terms import common_word, level_name, level_words

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
class Spotlight:
    """What a lesson lights in the view, and what it hides while it asks.

    Attributes:
        term: that is lit, one of `analysis.lesson.content.TERMS`; "" for none.
        tokens: that are lit.
        veiled: whether what the levels did is hidden, and tokens can be marked.
        among: tokens that can be marked.
        marked: those that are marked at first.
        most: number of tokens that are to be marked.
    """

    term: str = ""
    tokens: tuple[int, ...] = ()
    veiled: bool = False
    among: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()
    most: int = 0


def view_data(trace: Trace, shown: Shown, words: Mapping[str, str], spotlight: Spotlight | None = None) -> bytes:
    """The component's data: the length of a header (uint32), the header (JSON), and the arrays one after another.

    The header's `arrays` says of each its type ("u1", "u4", "i4", "f2", "f4", little-endian), where it begins after the
    header, and its bytes. `mergedInto` and `updatedFrom` are there if a level merges, `work` if there are light/heavy
    blocks. The header's `id` is the same for all edits of a prompt; its `version` changes with any array. A level's
    `words` are the labels that are other ones there, because of its router.

    Args:
        trace: trace of a prompt.
        shown: what to show first.
        words: labels by key.
        spotlight: what a lesson lights and hides; None without a lesson.
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
        *([("mergedInto", "i4", routing.merged_into)] if routing.merges.any() else []),
        *([("updatedFrom", "i4", routing.updated_from)] if routing.merges.any() else []),
        *([("work", "f4", routing.work)] if (routing.site_blocks >= 0).any() else []),
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
            {
                "key": each.key,
                "rows": each.rows,
                "label": common_word(trace, each.label, words),
                "help": common_word(trace, each.help, words, " "),
            }
            for each in channels
        ],
        "blocks": routing.block_levels.tolist(),
        "levels": _levels(trace, words),
        "labels": {key.removeprefix("view_"): text for key, text in words.items() if key.startswith("view_")},
        "shown": vars(shown),
        "spotlight": None if spotlight is None else vars(spotlight),
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
    """The channels of a trace; those with rows for levels come first. What was not recorded, all NaN, has none."""
    routing, blocks = trace.routing, trace.blocks
    scored = any(map(routing.scores_tokens, routing.levels))
    channels = [_Channel("score", "levels", routing.scores)] if scored else []
    recorded = not routing.num_levels or not np.isnan(routing.weights).all()  # a corpus has scores and decisions
    if recorded and not (routing.num_levels and routing.merges.all()):  # where all weights are 1
        channels.append(_Channel("weight", "levels", routing.weights))
    if recorded:
        channels.append(_Channel("bypass", "levels", routing.contribution_share))
    channels.append(_Channel("kept", "levels", routing.kept))
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
        row, own = level - 1, level_words(trace, level, words)
        depths.append(depths[parent] + 1)
        name, block = level_name(trace, level, words), int(routing.site_blocks[row])
        inside = np.isin(block_levels, _with_inner(routing, level)).nonzero()[0] if block < 0 else np.asarray([block])
        part = name if block < 0 else words[f"site_{routing.site_kinds[row]}"]
        kept, reached = (f"{each[row].sum():,}" for each in (routing.kept, routing.reached))
        title = own["view_kept_of"].format(level=part, kept=kept, reached=reached)
        levels.append(
            {
                "level": level,
                "name": name,
                "title": words["view_levelEdited"].format(title=title) if level in edited else title,
                "group": "" if block < 0 else words["site_block"].format(n=block),
                "block": block,
                "skipped": "light" if block >= 0 else "merged" if routing.merges[row] else "dropped",
                "parent": parent,
                "depth": depths[level],
                "first": int(inside.min(initial=routing.num_blocks)),
                "last": int(inside.max(initial=-1)),
                "router": str(routing.routers[row]),
                "threshold": float(routing.thresholds[row]) if routing.scores_tokens(level) else None,
                "edited": level in edited,
                "words": {
                    key.removeprefix("view_"): own[key]
                    for key in words
                    if key.startswith("view_") and own[key] != words[key]
                },
            }
        )
    return levels


def _edited_levels(trace: Trace) -> set[int]:
    """Levels that an edit changes as a whole: threshold, retention, bypass, or routing off."""
    from ...debug.edits import Edit  # noqa: PLC0415 - imports torch, which the figures do not need

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


def _utf16_offsets(text: str) -> np.ndarray:
    """(len + 1,) position of every character in the text as a browser counts: characters beyond U+FFFF are two."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0xFFFF))])


def _number(value: Any, low: int, high: int) -> int | None:
    """A whole number within limits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None
