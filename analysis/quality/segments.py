"""Which part of a text loses most: the kept tokens of each turn, question, sentence, line, word and script.

Every token belongs to one segment of each kind, that of its first character which is no white space. A segment that
occurs more than once, such as a word, is one segment with all of its places. All of it is read from the trace.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ..trace.chat_turns import turns_of
from ..trace.parts import Prompt, Routing
from ..trace.sentences import asks, sentence_ends, visible_parts
from ..trace.statistics import wilson
from ..trace.token_classes import script_of, words_of

_SHORTENED = 60  # characters of a name


class SegmentKind(StrEnum):
    """What a text is divided into."""

    TURN = "turn"
    QUESTION = "question"
    SENTENCE = "sentence"
    LINE = "line"
    WORD = "word"
    SCRIPT = "script"


@dataclass(frozen=True, eq=False)
class Segments:
    """Retention of the segments of one kind; N segments, in the order of the text.

    Attributes:
        kind: of the segments.
        names: (N,) their text, shortened, or what they are.
        of_token: (T,) segment of each token.
        tokens: (N,) number of tokens.
        reached: (S, N) number of them that reached each level.
        kept: (S, N) number of them that each level kept.
    """

    kind: SegmentKind
    names: list[str]
    of_token: np.ndarray
    tokens: np.ndarray
    reached: np.ndarray
    kept: np.ndarray

    def share(self, level: int) -> np.ndarray:
        """(N,) share of each segment's tokens that a level kept, those that an outer level dropped included."""
        share: np.ndarray = self.kept[level - 1] / self.tokens
        return share

    def interval(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Ends of Wilson's 95% interval of the share, (N,) each.

        It treats tokens as independent, which those of a segment are not quite, so it is rather too narrow.
        """
        return wilson(self.share(level), self.tokens)

    def order(self, level: int) -> np.ndarray:
        """(N,) segments from the one that a level keeps the smallest share of; the longest one first among equals."""
        return np.lexsort((np.arange(len(self.names)), -self.tokens, self.share(level)))

    def places(self, segment: int) -> np.ndarray:
        """Tokens of a segment."""
        found: np.ndarray = np.flatnonzero(self.of_token == segment)
        return found


def segments(prompt: Prompt, routing: Routing, kind: SegmentKind) -> Segments:
    """Divide a prompt, and count the kept tokens of each part.

    Args:
        prompt: the text and its tokens.
        routing: what was kept.
        kind: what it is divided into. Without a chat template there is one turn, without a name.
    """
    names, of_token = _divided(prompt, kind)
    present, of_token = np.unique(of_token, return_inverse=True)  # a part of white space alone has no token

    def counted(flags: np.ndarray) -> np.ndarray:
        found = [np.bincount(of_token[row], minlength=len(present)) for row in flags]
        return np.asarray(found, dtype=np.int64).reshape(len(flags), len(present))

    return Segments(
        kind,
        [names[segment] for segment in present.tolist()],
        of_token,
        np.bincount(of_token, minlength=len(present)),
        counted(routing.reached),
        counted(routing.kept),
    )


def has_turns(prompt: Prompt) -> bool:
    """Whether the text has turns of a chat."""
    return any(True for _ in turns_of(prompt.text))


def _divided(prompt: Prompt, kind: SegmentKind) -> tuple[list[str], np.ndarray]:
    """Names of segments, and the segment of each token."""
    text = prompt.text
    if kind == SegmentKind.WORD:
        words = words_of(prompt)
        starts = np.searchsorted(words, words)  # first token of each token's word
        ends = np.searchsorted(words, words, side="right") - 1
        keys = [
            _short(text[start:end].strip().casefold()) or repr(str(piece))  # of spaces alone, or of no text
            for start, end, piece in zip(prompt.starts[starts], prompt.ends[ends], prompt.pieces, strict=True)
        ]
        return _grouped(keys)
    at = _first_visible(prompt)
    if kind == SegmentKind.SCRIPT:
        return _grouped([_script(text[start:end]) for start, end in zip(at, prompt.ends.tolist(), strict=True)])
    cuts = visible_parts(text, _cuts(text, kind))
    of_token = np.searchsorted(cuts, at, side="right") - 1
    parts = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    if kind == SegmentKind.TURN:
        turns = {turn.mark: f"{number} {turn.role}" for number, turn in enumerate(turns_of(text), 1)}
        return [turns.get(cut, "") for cut in cuts], of_token
    if kind == SegmentKind.QUESTION:
        asked = [asks(part) for part in parts]
        names = [_short(part) if question else "" for part, question in zip(parts, asked, strict=True)]
        rest = len(names)  # all that is no question is one segment
        moved = np.asarray([number if question else rest for number, question in enumerate(asked)], dtype=np.int64)
        return [*names, ""], moved[of_token]
    return [_short(part) for part in parts], of_token


def _first_visible(prompt: Prompt) -> list[int]:
    """Place of each token's first character that is no white space; of its first one if all are."""
    found = []
    for start, end in zip(prompt.starts.tolist(), prompt.ends.tolist(), strict=True):
        piece = prompt.text[start:end]
        inside = len(piece) - len(piece.lstrip())
        found.append(start + (inside if inside < len(piece) else 0))
    return found


def _cuts(text: str, kind: SegmentKind) -> Iterator[int]:
    """Where parts begin, but for the first."""
    if kind == SegmentKind.TURN:
        yield from (turn.mark for turn in turns_of(text) if turn.mark)
    elif kind == SegmentKind.LINE:
        yield from (match.end() for match in re.finditer(r"\n", text) if match.end() < len(text))
    else:
        yield from sentence_ends(text)


def _grouped(keys: list[str]) -> tuple[list[str], np.ndarray]:
    """Different keys in the order of their first place, and the number of each one's key."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(numbers), np.asarray([numbers[key] for key in keys], dtype=np.int64)


def _script(piece: str) -> str:
    """Script of the first letter; else "digits", "symbols", or "spaces" where there is nothing else."""
    for character in piece:
        if character.isalpha():
            return script_of(character)
    if any(character.isnumeric() for character in piece):
        return "digits"
    return "spaces" if not piece.strip() else "symbols"


def _short(text: str) -> str:
    """A text as a name: on one line, and not long."""
    flat = " ".join(text[: 4 * _SHORTENED].split())
    return flat if len(flat) <= _SHORTENED else f"{flat[: _SHORTENED - 1]}…"
