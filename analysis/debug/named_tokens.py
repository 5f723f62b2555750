"""Tokens that an edit names: numbers and ranges such as "3-7,9", a class such as "digits", or a text in quotes."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import AnalysisError
from ..trace.parts import Prompt
from ..trace.token_classes import CLASSES, spans_of

MOST_TOKENS = 1 << 18  # that the edits of a line name by number, each counted as often as it is named
_DIGITS = 6  # of the number of a token or a level


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
        AnalysisError: if it is neither numbers, nor a class, nor a text in quotes.
    """
    if is_numbers(what):
        return ranges(_expanded(_bounds(what)))
    if not _is_quoted(what) and what not in CLASSES:
        raise AnalysisError(
            "{what!r} names no tokens; write numbers such as 3-7,9, a text in quotes, or one of {classes}.",
            what=shortened(what),
            classes=", ".join(CLASSES),
        )
    return what


def is_numbers(what: str) -> bool:
    """Whether tokens are named by number."""
    return what[:1].isdecimal()


def count_numbers(what: str) -> int:
    """How many tokens are named by number, without expanding the ranges."""
    return sum(high - low + 1 for low, high in _bounds(what)) if is_numbers(what) else 0


def find_tokens(what: str, prompt: Prompt) -> tuple[int, ...]:
    """Indices of the tokens of a prompt that a text names, ascending; numbers may lie beyond the prompt.

    Raises:
        AnalysisError: if a class or a quoted text is nowhere in the prompt.
    """
    if is_numbers(what):
        return _expanded(_bounds(what))
    text, covered = prompt.text, np.zeros(len(prompt.text) + 1, dtype=bool)
    for first, last in _occurrences(what[1:-1], text) if _is_quoted(what) else spans_of(what, text):
        covered[first:last] = True
    before = np.concatenate([[0], np.cumsum(covered)])  # covered characters before each
    tokens = np.flatnonzero(before[prompt.ends] > before[prompt.starts])
    if not len(tokens):
        raise AnalysisError("No tokens of the prompt match {what}.", what=shortened(what))
    return tuple(tokens.tolist())


def parse_number(text: str) -> int | None:
    """Number of a token or a level; None if the text is not one, or has too many digits."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def shortened(text: str) -> str:
    """As much of a text as a message has room for."""
    return text if len(text) <= 80 else text[:80] + "…"


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


def _occurrences(text: str, prompt: str) -> Iterator[tuple[int, int]]:
    """Start and end of a text wherever it stands in a prompt."""
    at = prompt.find(text)
    while at >= 0:
        yield at, at + len(text)
        at = prompt.find(text, at + len(text))
