"""Classes of tokens by their text: characters of a kind, kinds of tokens, and words."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from .parts import Prompt

CLASSES = {  # of characters; a token is of a class if one of its characters is
    "letters": r"[^\W\d_]+",
    "digits": r"\d+",
    "punctuation": r"[^\w\s]+",
    "spaces": r"\s+",
    "capitals": r"[A-Z]\w*",
    "words": r"\w+",
}
KINDS = {  # of whole tokens; each token has the first that matches
    "beginning": r"\s*[^\W\d_]+|[A-Z][^\W\d_]*",  # of a word, with the space before it
    "continuation": r"[^\W\d_]+",
    "digit": r"\s*\d+",
    "punctuation": r"\s*[^\w\s]+",
    "space": r"\s+",
}
_SCRIPTS = {"CJK": "Han", "IDEOGRAPHIC": "Han"}  # by the first word of a character's name, where that is not the script


def script_of(letter: str) -> str:
    """Script that a letter belongs to.

    >>> script_of("é"), script_of("ж"), script_of("汉")
    ('Latin', 'Cyrillic', 'Han')
    """
    plain = unicodedata.normalize("NFKC", letter)[:1] or letter
    first = unicodedata.name(plain, "UNKNOWN").split(" ")[0].split("-")[0]
    return _SCRIPTS.get(first, first.title())


def spans_of(name: str, text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every stretch of characters of one of the `CLASSES` in a text."""
    return (match.span() for match in re.finditer(CLASSES[name], text))


def kinds_of(pieces: Sequence[str]) -> list[str]:
    """The first of `KINDS` that matches each token; "punctuation" where none does.

    Args:
        pieces: texts of consecutive tokens.

    >>> kinds_of([" harb", "our", " gate", "s", ".", " 12"])
    ['beginning', 'continuation', 'beginning', 'continuation', 'punctuation', 'digit']
    """
    found = []
    for index, piece in enumerate(pieces):
        inside = index > 0 and pieces[index - 1][-1:].isalpha() and piece[:1].isalpha()
        for kind, pattern in KINDS.items():
            if re.fullmatch(pattern, piece) and not (kind == "beginning" and inside):
                found.append(kind)
                break
        else:
            found.append("punctuation")
    return found


def words_of(prompt: Prompt) -> np.ndarray:
    """(T,) index of the word that each token is part of; a word ends at any character but a letter or a digit."""
    starts, ends = prompt.starts.tolist(), prompt.ends.tolist()
    groups = np.zeros(len(prompt), dtype=np.int64)
    for token in range(1, len(prompt)):
        start, before = starts[token], ends[token - 1]
        text, last = prompt.text[start : ends[token]], prompt.text[before - 1 : before]
        joined = bool(text) and last.isalnum() and text[0].isalnum() and start <= before
        inside = start < before  # several tokens of one character
        groups[token] = groups[token - 1] + (0 if joined or inside else 1)
    return groups
