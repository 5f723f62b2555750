"""Where a text has sentences, and which of them ask."""

import re
from collections.abc import Iterable, Iterator

_END = re.compile(  # every alternative begins once in a run of its characters, so that time stays linear
    r"(?<![.!?])[.!?]+[\"'”’)\]]*(?=\s)|(?<![。！？])[。！？]+[”’」』）]*|\n[^\S\n]*\n|[؟।]"
)
_LAST = 200  # characters of a sentence in which its question mark, and white space after it, stand
_VISIBLE = re.compile(r"\S")
_ASKS = re.compile(r"[?？؟][.!?。！？…]*[\"'”’)\]」』）]*\s*\Z")


def sentence_ends(text: str) -> Iterator[int]:
    """Index after each end of a sentence that is not the end of the text."""
    return (match.end() for match in _END.finditer(text) if match.end() < len(text))


def visible_parts(text: str, cuts: Iterable[int]) -> list[int]:
    """Where parts begin, so that none of several is white space alone: it goes with the part behind it, or the last.

    Args:
        text: that is divided.
        cuts: where parts begin, but for the first; ascending.
    """
    found, visible = [0], _visible_from(text, 0)
    for cut in cuts:
        if visible < cut:
            found.append(cut)
            visible = _visible_from(text, cut)
    if len(found) > 1 and visible == len(text):
        found.pop()
    return found


def asks(sentence: str) -> bool:
    """Whether a sentence ends with a question mark; one inside of it, as in an address, asks nothing."""
    return _ASKS.search(sentence[-_LAST:]) is not None


def _visible_from(text: str, start: int) -> int:
    """Place of the first character from some place on that is no white space; the text's length if there is none."""
    match = _VISIBLE.search(text, start)
    return len(text) if match is None else match.start()
