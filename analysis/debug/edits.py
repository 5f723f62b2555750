"""Edits to the routing of a prompt, and how they are written.

    drop 3-7,9@1        Level 1 drops these tokens, whatever their scores
    keep 12@2           Level 2 keeps this token, with weight 1
    threshold 0.3@1     the threshold of Level 1 moves by 0.3: from 0 to 0.3, or in a light/heavy block from where
                        training left it; SUBLLM's weights, too, are computed from the score minus 0.3; all
                        others stay
    retention 0.5@2     Level 2 keeps the half of the prompt's tokens that reach it with the highest scores
    bypass 0@1          what Level 1 adds to the stream is scaled by this factor
    dense@2             Level 2 keeps everything, with weight 1
    budget 256@1        Level 1 keeps no token once it has kept 256, except those that an edit keeps

`@*` means every level. Tokens can also be named by class (`drop digits@1`), by who says them in a chat (`keep
system@*`) or by text (`keep "harbour gate"@*`), which is matched against the prompt that the edit is applied to.
`keep last 32@*` is for the last 32 tokens of the prompt and all that follow it: a new token is always among the last
ones when it is decided about, and no decision is taken back later. Semicolons separate the edits of a line.

A budget counts the tokens that the level has kept so far, in their order, whatever kept them. It comes after all other
edits of the level. A token is never dropped later for a better one, so a text that goes on token by token is kept as
if it had been read at once.

Edits come from strangers, also in links: parsing takes time linear in the length of the text, and the size of a range
is checked before the range is expanded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from subllm.errors import shortened

from ..errors import AnalysisError
from ..trace.parts import Prompt, Routing
from .named_tokens import MOST_TOKENS, check_named, count_numbers, find_tokens, parse_number, ranges

MOST_EDITS = 200  # in a line
MOST_CHARACTERS = 1 << 18  # of one edit; every token of a long prompt can be named
_LARGEST = 1_000_000  # threshold or factor


class EditKind(StrEnum):
    """What an edit changes; the value is the word that it is written with."""

    KEEP = "keep"
    DROP = "drop"
    THRESHOLD = "threshold"
    RETENTION = "retention"
    BYPASS = "bypass"
    DENSE = "dense"
    BUDGET = "budget"

    @property
    def names_tokens(self) -> bool:
        """Whether such an edit names tokens; others are for a level as a whole."""
        return self in (EditKind.KEEP, EditKind.DROP)

    @property
    def needs_scores(self) -> bool:
        """Whether the level's router has to score tokens."""
        return self in (EditKind.THRESHOLD, EditKind.RETENTION)

    @property
    def chooses(self) -> bool:
        """Whether such an edit chooses tokens; the others take a level as it is, or keep everything."""
        return self not in (EditKind.BYPASS, EditKind.DENSE)


class LevelKind(NamedTuple):
    """What edits have to know about a level.

    Attributes:
        scores: whether its router scores tokens.
        merges: whether its router merges tokens, so that none are dropped.
    """

    scores: bool
    merges: bool


@dataclass(frozen=True)
class Edit:
    """One change to the routing.

    Attributes:
        kind: what it changes; the word for it is converted.
        level: number of the level, from 1; None for every level.
        tokens: tokens to keep or drop, as written; see `analysis.debug.named_tokens`.
        value: what the threshold moves by, the retention, the factor of what the level adds, or the number of tokens.
    """

    kind: EditKind
    level: int | None
    tokens: str = ""
    value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", EditKind(self.kind))

    @property
    def what(self) -> str:
        """Tokens or number, as written; "" for a dense level."""
        if self.kind.names_tokens:
            return self.tokens
        return "" if self.kind is EditKind.DENSE else np.format_float_positional(self.value, trim="-")

    def __str__(self) -> str:
        """The edit as `parse` reads it."""
        return f"{self.kind} {self.what}".strip() + f"@{'*' if self.level is None else self.level}"

    def applies(self, level: int) -> bool:
        """Whether the edit is for this level."""
        return self.level in (None, level)

    @classmethod
    def parse(cls, text: str, first: int = 1) -> "Edit":
        """Read an edit.

        Args:
            text: an edit as in the module's docstring.
            first: number of the first level in `text`; old links counted from 0.

        Raises:
            AnalysisError: if the text is not an edit.
        """
        if len(text) > MOST_CHARACTERS:
            raise AnalysisError(
                "The edit {text!r} has {characters:,} characters; at most {most:,} are allowed. Write ranges such as "
                "3-70, or several edits.",
                text=shortened(text),
                characters=len(text),
                most=MOST_CHARACTERS,
            )
        before, at, where = text.rpartition("@")
        word, what = [*before.split(maxsplit=1), "", ""][:2]
        what, where = what.strip(), where.strip()
        number = None if where == "*" else parse_number(where)
        kind = EditKind(word) if word in [*EditKind] else None
        badly_placed = not at or (number is None and where != "*")
        if kind is None or badly_placed or (kind is EditKind.DENSE and what):
            raise AnalysisError(
                "The edit {text!r} cannot be read. Write one of {kinds}, then a value or tokens, then @ and the "
                "number of a level or *, such as 'drop 3-7@1' or 'threshold 0.3@*'.",
                text=shortened(text),
                kinds=", ".join(EditKind),
            )
        level = None if number is None else number + 1 - first
        if level is not None and level < 1:
            raise AnalysisError(
                "The edit {text!r} is for level {level}; levels are numbered from 1.", text=shortened(text), level=level
            )
        if kind is EditKind.DENSE:
            return cls(kind, level)
        if kind.names_tokens:
            return cls(kind, level, tokens=check_named(what))
        try:
            value = float(what)
        except ValueError:
            value = np.nan
        if kind is EditKind.BUDGET and not (1 <= value <= MOST_TOKENS and value == int(value)):
            raise AnalysisError(
                "The edit {text!r} has {what!r} where {kind} needs a whole number of tokens from 1 to {most:,}.",
                text=shortened(text),
                what=shortened(what),
                kind=kind,
                most=MOST_TOKENS,
            )
        least, most = (0, 1) if kind is EditKind.RETENTION else (-_LARGEST, _LARGEST)
        if not least <= value <= most:  # NaN is refused, too
            raise AnalysisError(
                "The edit {text!r} has {what!r} where {kind} needs a number from {least:,} to {most:,}.",
                text=shortened(text),
                what=shortened(what),
                kind=kind,
                least=least,
                most=most,
            )
        return cls(kind, level, value=value)

    def named(self, prompt: Prompt) -> tuple[int, ...]:
        """Indices of the tokens of a prompt that the edit names, ascending.

        Raises:
            AnalysisError: if it names a number beyond the prompt, or a text that is not in it.
        """
        if not self.kind.names_tokens:
            return ()
        tokens = find_tokens(self.tokens, prompt)
        if not tokens:
            raise AnalysisError("No tokens of the prompt match {what}.", what=shortened(self.tokens))
        if tokens[-1] >= len(prompt):
            raise AnalysisError(
                "The edit '{edit}' is for token {token:,}; the tokens of the prompt are 0 to {last:,}.",
                edit=shortened(str(self)),
                token=tokens[-1],
                last=len(prompt) - 1,
            )
        return tokens

    def check(self, levels: Sequence[LevelKind], prompt: Prompt) -> None:
        """Check that the edit fits a model and a prompt.

        Args:
            levels: (S,) kind of each level.
            prompt: the prompt that the edit is applied to.

        Raises:
            AnalysisError: if the level or a token does not exist, or the level's router does not score tokens, or it
                merges them.
        """
        short = shortened(str(self))
        if self.level is not None and self.level > len(levels):
            raise AnalysisError(
                "The edit '{edit}' is for Level {level}, and the number of levels of this model is {levels}.",
                edit=short,
                level=self.level,
                levels=len(levels),
            )
        for level, kind in enumerate(levels, start=1):
            if not self.applies(level):
                continue
            if self.kind.chooses and kind.merges:
                raise AnalysisError(
                    "The edit '{edit}' chooses tokens of Level {level}, but that level's router merges tokens into "
                    "groups by their place and drops none. Switch the level off with dense@{level}, or scale what it "
                    "adds with bypass.",
                    edit=short,
                    level=level,
                )
            if self.kind.needs_scores and not kind.scores:
                raise AnalysisError(
                    "The edit '{edit}' moves the threshold of Level {level}, but that level's router does not score "
                    "tokens. Keep or drop tokens there instead.",
                    edit=short,
                    level=level,
                )
        self.named(prompt)


def parse_edits(text: str, first: int = 1) -> list[Edit]:
    """Read the edits of a line, such as a link holds.

    Args:
        text: edits, separated by semicolons.
        first: number of the first level in `text`; old links counted from 0.

    Raises:
        AnalysisError: if one cannot be read, or there are too many.

    >>> [edit.level for edit in parse_edits('drop 3-7,9@1; keep "harbour gate"@*')]
    [1, None]
    """
    return read_edits([part for part in _split(text) if part.strip()], first)


def read_edits(texts: Sequence[str], first: int = 1) -> list[Edit]:
    """Read edits one by one.

    Args:
        texts: an edit each.
        first: see `parse_edits`.

    Raises:
        AnalysisError: see `parse_edits`.
    """
    if len(texts) > MOST_EDITS:
        raise AnalysisError("There are more than {most} edits; leave some out.", most=MOST_EDITS)
    edits: list[Edit] = []
    named = 0
    for text in texts:
        edits.append(Edit.parse(text, first))
        named += count_numbers(edits[-1].tokens)
        if named > MOST_TOKENS:
            raise AnalysisError("The edits name more than {most:,} tokens; leave some out.", most=MOST_TOKENS)
    return edits


def write_edits(edits: Sequence[Edit]) -> str:
    """Write edits as a line that `parse_edits` reads."""
    return ";".join(map(str, edits))


def _split(text: str) -> Iterator[str]:
    """Split a line at its semicolons, except inside quotes."""
    quote, start, count = "", 0, 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == ";":
            yield text[start:at]
            start, count = at + 1, count + 1
            if count > MOST_EDITS:
                return
    yield text[start:]


def without(edits: Sequence[Edit], tokens: Sequence[int], level: int | None, prompt: Prompt) -> list[Edit]:
    """Take tokens out of the edits that keep or drop them, so that the router decides about them again.

    Args:
        edits: the edits in force.
        tokens: indices of the tokens.
        level: number of the level; None takes the tokens out of the edits that are for every level.
        prompt: the prompt that the edits are applied to.
    """
    rest, gone = [], set(tokens)
    for edit in edits:
        named = edit.named(prompt) if edit.level == level else ()
        left = [token for token in named if token not in gone]
        if len(left) == len(named):
            rest.append(edit)  # as written
        elif left:
            rest.append(replace(edit, tokens=ranges(left)))
    return rest


def check(edits: Sequence[Edit], levels: Sequence[LevelKind], prompt: Prompt) -> None:
    """Check that all edits fit a model and a prompt; see `Edit.check`."""
    for edit in edits:
        edit.check(levels, prompt)


def kinds_in(routing: Routing) -> list[LevelKind]:
    """(S,) kind of each level of a trace."""
    return [LevelKind(*pair) for pair in zip(routing.scored, routing.merges.tolist(), strict=True)]
