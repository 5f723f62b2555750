"""Tokens that an edit names: "3-7,9", "last 32", a class such as "digits", a role of a chat, or a text in quotes."""

from collections.abc import Iterator, Sequence

import numpy as np

from subllm.errors import shortened

from ..errors import AnalysisError
from ..trace.chat_turns import ROLES, turns_of
from ..trace.parts import Prompt
from ..trace.token_classes import CLASSES, spans_of

NAMES = (*CLASSES, *ROLES)
MOST_TOKENS = 1 << 18  # that the edits of a line name by number, each counted as often as it is named
_DIGITS = 6  # of the number of a token or a level
_LAST = "last "


def ranges(tokens: Sequence[int]) -> str:
    """Write ascending numbers in short: 3, 4, 5 and 9 are "3-5,9"."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def check_named(what: str) -> str:
    """Check that a text names tokens, and return it; numbers come back ascending and in short.

    Raises:
        AnalysisError: if it is neither numbers, nor the last ones, nor a class or role, nor a text in quotes.
    """
    if is_numbers(what):
        return ranges(_expanded(_bounds(what)))
    if what.startswith(_LAST) and (last := parse_number(what.removeprefix(_LAST).strip())):
        return f"{_LAST}{last}"
    if not _is_quoted(what) and what not in NAMES:
        raise AnalysisError(
            "{what!r} names no tokens; write numbers such as 3-7,9, the last ones such as last 32, a text in quotes, "
            "or one of {classes}.",
            what=shortened(what),
            classes=", ".join(NAMES),
        )
    return what


def is_numbers(what: str) -> bool:
    """Whether tokens are named by number."""
    return what[:1].isdecimal()


def last_ones(what: str) -> int | None:
    """N of "last N", the last tokens of a prompt and all that follow it; None for other names."""
    return int(what.removeprefix(_LAST)) if what.startswith(_LAST) else None


def count_numbers(what: str) -> int:
    """How many tokens are named by number, without expanding the ranges."""
    return sum(high - low + 1 for low, high in _bounds(what)) if is_numbers(what) else 0


def find_tokens(what: str, prompt: Prompt) -> tuple[int, ...]:
    """Indices of the tokens of a prompt that a text names, ascending; numbers may lie beyond the prompt."""
    if is_numbers(what):
        return _expanded(_bounds(what))
    last = last_ones(what)
    if last is not None:
        return tuple(range(max(len(prompt) - last, 0), len(prompt)))
    covered = np.zeros(len(prompt.text) + 1, dtype=bool)
    for first, end in _spans(what, prompt.text):
        covered[first:end] = True
    before = np.concatenate([[0], np.cumsum(covered)])  # covered characters before each
    return tuple(np.flatnonzero(before[prompt.ends] > before[prompt.starts]).tolist())


def parse_number(text: str) -> int | None:
    """Number of a token or a level; None if the text is not one, or has too many digits."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def _bounds(what: str) -> list[tuple[int, int]]:
    """First and last number of each range in "3-7,9"."""
    bounds: list[tuple[int, int]] = []
    for part in what.split(","):
        first, dash, last = part.partition("-")
        low = parse_number(first.strip())
        high = parse_number(last.strip()) if dash else low
        if low is None or high is None or low > high:
            raise AnalysisError(
                "{part!r} in {what!r} is not a token number. Write numbers of at most {digits} digits, and ranges "
                "from the lower to the higher number, such as 3-7,9.",
                part=shortened(part),
                what=shortened(what),
                digits=_DIGITS,
            )
        bounds.append((low, high))
    if max(high for _, high in bounds) >= MOST_TOKENS:
        raise AnalysisError(
            "The token numbers {what} exceed {last:,}, the largest that is allowed.",
            what=shortened(what),
            last=MOST_TOKENS - 1,
        )
    return bounds


def _expanded(bounds: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """All numbers of these ranges, each once, ascending."""
    reached, found = -1, list[int]()
    for low, high in sorted(bounds):
        found += range(max(low, reached + 1), high + 1)
        reached = max(reached, high)
    return tuple(found)


def _is_quoted(what: str) -> bool:
    return len(what) > 2 and what[0] in "'\"" and what[-1] == what[0] and what[0] not in what[1:-1]


def _spans(what: str, text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every stretch of a text that a class, a role or a quoted text names."""
    if _is_quoted(what):
        return _occurrences(what[1:-1], text)
    if what in ROLES:
        return ((turn.start, turn.end) for turn in turns_of(text) if turn.role == what)
    return spans_of(what, text)


def _occurrences(text: str, prompt: str) -> Iterator[tuple[int, int]]:
    """Start and end of a text wherever it stands in a prompt."""
    at = prompt.find(text)
    while at >= 0:
        yield at, at + len(text)
        at = prompt.find(text, at + len(text))
