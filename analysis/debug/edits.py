"""Edits to the routing of a prompt: what may be changed, how it is written down, and the override that does it.

    drop 3-7,9@1        these tokens are dropped at Level 1, whatever their scores
    keep 12@2           this one is kept at Level 2, with weight 1
    threshold 0.3@1     Level 1 keeps the scores above 0.3; what it calls 0 is now 0.3, for the weights too
    retention 0.5@2     Level 2 keeps the half of the prompt's tokens that reach it with the highest scores
    bypass 0@1          what Level 1 changes is scaled by this factor
    dense@2             Level 2 keeps everything, with weight 1

`@*` means every level. Tokens may also be named by class (`drop digits@1`) or by text (`keep "harbour gate"@*`); they
stay so named, and are looked for in the prompt that the edit is applied to. Several edits in a line are separated by
semicolons.

Edits come from strangers, in links too: reading one takes time linear in its length, and its size is known before it is
expanded.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from subllm.routing import LevelTokens, Router, Selection
from subllm.routing.overrides import threshold_for

from ..errors import AnalysisError
from ..trace.parts import Prompt

KINDS = ("keep", "drop", "threshold", "retention", "bypass", "dense")
NAMING = ("keep", "drop")  # kinds that name tokens
SCORED = ("threshold", "retention")  # kinds that need a router that scores
CLASSES = {
    "letters": r"[^\W\d_]+",
    "digits": r"\d+",
    "punctuation": r"[^\w\s]+",
    "spaces": r"\s+",
    "capitals": r"[A-Z]\w*",
    "words": r"\w+",
}
MOST_EDITS = 200  # in a line
MOST_CHARACTERS = 1 << 18  # of one edit; every token of a long prompt can be named
MOST_TOKENS = 1 << 18  # that the edits of a line name by number, each counted as often as it is named
_LARGEST = 1_000_000  # threshold or factor
_DIGITS = 6  # of the number of a token or a level


@dataclass(frozen=True)
class Edit:
    """One change to the routing.

    Attributes:
        kind: one of `KINDS`.
        level: number of the level, from 1; None for every level.
        tokens: for "keep" and "drop", as written: numbers, a class, or a text in quotes.
        value: for "threshold", "retention" and "bypass".
    """

    kind: str
    level: int | None
    tokens: str = ""
    value: float = 0.0

    @property
    def what(self) -> str:
        """Tokens or number, as written; "" for "dense"."""
        if self.kind in NAMING:
            return self.tokens
        return "" if self.kind == "dense" else np.format_float_positional(self.value, trim="-")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind} {self.what}".strip() + f"@{'*' if self.level is None else self.level}"

    def applies(self, level: int) -> bool:
        """Whether it is for a level."""
        return self.level in (None, level)

    @classmethod
    def parse(cls, text: str, first: int = 1) -> "Edit":
        """Read an edit.

        Args:
            text: as in the module's docstring.
            first: number of the first level in `text`; old links counted from 0.

        Raises:
            AnalysisError: if it cannot be read; says what is allowed.
        """
        if len(text) > MOST_CHARACTERS:
            raise AnalysisError(
                "The edit {text!r} has {characters:,} characters; at most {most:,} are allowed. Write ranges such as "
                "3-70, or several edits.",
                text=_short(text),
                characters=len(text),
                most=MOST_CHARACTERS,
            )
        before, at, where = text.rpartition("@")
        kind, what = [*before.split(maxsplit=1), "", ""][:2]
        what, where = what.strip(), where.strip()
        number = None if where == "*" else _number(where)
        if not at or kind not in KINDS or (number is None and where != "*") or (kind == "dense" and what):
            raise AnalysisError(
                "The edit {text!r} cannot be read. Write one of {kinds}, then a value or tokens, then @ and the "
                "number of a level or *, such as 'drop 3-7@1' or 'threshold 0.3@*'.",
                text=_short(text),
                kinds=", ".join(KINDS),
            )
        level = None if number is None else number + 1 - first
        if level is not None and level < 1:
            raise AnalysisError(
                "The edit {text!r} is for level {level}; levels count from 1.", text=_short(text), level=level
            )
        if kind == "dense":
            return cls(kind, level)
        if kind in NAMING:
            return cls(kind, level, tokens=_checked(what))
        try:
            value = float(what)
        except ValueError:
            value = np.nan
        least, most = (0, 1) if kind == "retention" else (-_LARGEST, _LARGEST)
        if not least <= value <= most:  # nor is it where the value is no number
            raise AnalysisError(
                "The edit {text!r} has {what!r} where {kind} needs a number from {least:,} to {most:,}.",
                text=_short(text),
                what=_short(what),
                kind=kind,
                least=least,
                most=most,
            )
        return cls(kind, level, value=value)

    def named(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a prompt that the edit names, ascending.

        Args:
            prompt: that it is applied to.

        Raises:
            AnalysisError: if it names a number beyond the prompt, or nothing in it.
        """
        if self.kind not in NAMING:
            return ()
        if not self.tokens[:1].isdecimal():
            return _found(self.tokens, prompt)
        tokens = _expanded(_ranges(self.tokens))
        if tokens[-1] >= len(prompt):
            raise AnalysisError(
                "The edit '{edit}' is for token {token:,}; the tokens of the prompt are 0 to {last:,}.",
                edit=_short(str(self)),
                token=tokens[-1],
                last=len(prompt) - 1,
            )
        return tokens

    def check(self, scored: Sequence[bool], prompt: Prompt) -> None:
        """See that it fits a model and a prompt.

        Args:
            scored: for each level of the model, whether its router scores tokens.
            prompt: that it is applied to.

        Raises:
            AnalysisError: if a level or a token does not exist, or a level's router has no scores to be compared.
        """
        short = _short(str(self))
        if self.level is not None and self.level > len(scored):
            raise AnalysisError(
                "The edit '{edit}' is for Level {level}, and the number of levels of this model is {levels}.",
                edit=short,
                level=self.level,
                levels=len(scored),
            )
        for level, scores in enumerate(scored, start=1):
            if self.kind in SCORED and self.applies(level) and not scores:
                raise AnalysisError(
                    "The edit '{edit}' moves the threshold of Level {level}, but that level's router does not score "
                    "tokens. Keep or drop tokens there instead.",
                    edit=short,
                    level=level,
                )
        self.named(prompt)


def parse_edits(text: str, first: int = 1) -> list[Edit]:
    """Read the edits of a line, as a link has them.

    Args:
        text: edits, separated by semicolons.
        first: number of the first level in `text`; old links counted from 0.

    Raises:
        AnalysisError: if one cannot be read, or they are too many.
    """
    parts = [part for part in _split(text) if part.strip()]
    if len(parts) > MOST_EDITS:
        raise AnalysisError("There are more than {most} edits in a line; leave some out.", most=MOST_EDITS)
    edits: list[Edit] = []
    named = 0
    for part in parts:
        edits.append(Edit.parse(part, first))
        if edits[-1].tokens[:1].isdecimal():
            named += sum(high - low + 1 for low, high in _ranges(edits[-1].tokens))
        if named > MOST_TOKENS:
            raise AnalysisError("The edits of a line name more than {most:,} tokens; leave some out.", most=MOST_TOKENS)
    return edits


def write_edits(edits: Sequence[Edit]) -> str:
    """A line that `parse_edits` reads."""
    return ";".join(map(str, edits))


def _split(text: str) -> Iterator[str]:
    """Edits of a line; a semicolon inside of quotes separates nothing."""
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


def ranges(tokens: Sequence[int]) -> str:
    """Numbers in short: 3, 4, 5 and 9 are "3-5,9".

    Args:
        tokens: ascending.
    """
    runs: list[list[int]] = []
    for token in tokens:
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _checked(what: str) -> str:
    """Tokens as written, seen to be numbers, a class or a text."""
    if what[:1].isdecimal():
        return ranges(_expanded(_ranges(what)))
    if not _is_quoted(what) and what not in CLASSES:
        raise AnalysisError(
            "{what!r} names no tokens; write numbers such as 3-7,9, a text in quotes, or one of {classes}.",
            what=_short(what),
            classes=", ".join(CLASSES),
        )
    return what


def _is_quoted(what: str) -> bool:
    return len(what) > 2 and what[0] in "'\"" and what[-1] == what[0] and what[0] not in what[1:-1]


def _found(what: str, prompt: Prompt) -> tuple[int, ...]:
    """Tokens of a class, or of a text, in a prompt."""
    text, covered = prompt.text, np.zeros(len(prompt.text) + 1, dtype=bool)
    if _is_quoted(what):
        places = _places(what[1:-1], text)
    else:
        places = (each.span() for each in re.finditer(CLASSES[what], text))
    for first, last in places:
        covered[first:last] = True
    before = np.concatenate([[0], np.cumsum(covered)])  # covered characters before each
    tokens = np.flatnonzero(before[prompt.ends] > before[prompt.starts])
    if not len(tokens):
        raise AnalysisError("No tokens of the prompt match {what}.", what=_short(what))
    return tuple(tokens.tolist())


def _ranges(what: str) -> list[tuple[int, int]]:
    """First and last tokens of numbers and ranges such as "3-7,9"."""
    bounds: list[tuple[int, int]] = []
    for part in what.split(","):
        first, dash, last = part.partition("-")
        low = _number(first.strip())
        high = _number(last.strip()) if dash else low
        if low is None or high is None or low > high:
            raise AnalysisError(
                "{part!r} in {what!r} is not a token number. Write numbers of at most {digits} digits, and ranges "
                "from the lower to the higher number, such as 3-7,9.",
                part=_short(part),
                what=_short(what),
                digits=_DIGITS,
            )
        bounds.append((low, high))
    if max(high for _, high in bounds) >= MOST_TOKENS:
        raise AnalysisError(
            "The token numbers {what} exceed {last:,}, the largest that is allowed.",
            what=_short(what),
            last=MOST_TOKENS - 1,
        )
    return bounds


def _expanded(bounds: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    reached, found = -1, list[int]()
    for low, high in sorted(bounds):
        found += range(max(low, reached + 1), high + 1)
        reached = max(reached, high)
    return tuple(found)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def _short(text: str) -> str:
    """As much of what was written as a message has room for."""
    return text if len(text) <= 80 else text[:80] + "…"


def _places(text: str, prompt: str) -> Iterator[tuple[int, int]]:
    """First character and the one past the last, wherever a text stands in a prompt."""
    at = prompt.find(text)
    while at >= 0:
        yield at, at + len(text)
        at = prompt.find(text, at + len(text))


def without(edits: Sequence[Edit], tokens: Sequence[int], level: int | None, prompt: Prompt) -> list[Edit]:
    """Edits with these tokens taken out of what is forced at a level.

    Args:
        edits: in force.
        tokens: to be left to the router again.
        level: number of the level; None takes them out of the edits that are for every level.
        prompt: that the edits are applied to.
    """
    rest, gone = [], set(tokens)
    for edit in edits:
        named = edit.named(prompt) if edit.kind in NAMING and edit.level == level else ()
        left = [token for token in named if token not in gone]
        if len(left) == len(named):
            rest.append(edit)  # as written
        elif left:
            rest.append(replace(edit, tokens=ranges(left)))
    return rest


def check(edits: Sequence[Edit], scored: Sequence[bool], prompt: Prompt) -> None:
    """See that edits fit a model and a prompt: `Edit.check` for each."""
    for edit in edits:
        edit.check(scored, prompt)


@dataclass
class Edited:
    """The override that makes edits: what a router decides, changed.

    Thresholds come first, then dropped and kept tokens in the order of the edits, then the bypass.

    Args:
        edits: in force, seen to fit by `check`.
        prompt: that they are applied to. What follows it is only touched by what names no tokens.

    Attributes:
        thresholds: by level and number of the edit, with which a wanted retention was reached on the prompt; they hold
            for what follows it.
    """

    edits: Sequence[Edit]
    prompt: Prompt
    thresholds: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._named = [edit.named(self.prompt) for edit in self.edits]

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """The selection at a level."""
        mine = [(edit, named) for edit, named in zip(self.edits, self._named, strict=True) if edit.applies(level)]
        if any(edit.kind in SCORED for edit, _ in mine):
            scores = router.score(tokens.hidden_states)
            threshold = self._threshold(level, [edit for edit, _ in mine], scores, tokens)
            selection = router.decide(tokens, scores, threshold)
        else:
            selection = router.select(tokens, training=False)
        if not mine:
            return selection
        kept, weights, edited = selection.kept, selection.weights, torch.zeros_like(selection.kept)
        for edit, named in mine:
            if edit.kind == "dense":
                kept, weights = torch.ones_like(kept), torch.ones_like(weights)
            elif edit.kind in NAMING:
                here = torch.isin(tokens.positions, torch.tensor(named, device=kept.device))
                edited = edited | here
                kept = kept | here if edit.kind == "keep" else kept & ~here
                if edit.kind == "keep":
                    weights = weights.masked_fill(here, 1.0)
        for edit, _ in mine:
            if edit.kind == "bypass":
                weights = weights * edit.value
        return Selection.of(tokens, kept, weights, selection.scores, selection.threshold, edited)

    def _threshold(self, level: int, edits: Sequence[Edit], scores: Tensor, tokens: LevelTokens) -> float:
        """That the level's scores are compared with: the sum of what the edits move it by."""
        total = 0.0
        for number, edit in enumerate(edits):
            if edit.kind == "threshold":
                total += edit.value
            elif edit.kind == "retention":
                if (level, number) not in self.thresholds:
                    present = tokens.positions < len(self.prompt)
                    present = present if tokens.mask is None else present & tokens.mask
                    self.thresholds[level, number] = threshold_for(scores[present] - total, edit.value)
                total += self.thresholds[level, number]
        return total
