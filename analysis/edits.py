"""Edits to the routing of a prompt: what may be changed, how it is written down, and the rule that does it.

    drop 3-7,9@0        these tokens are dropped by subsampling module 0, whatever their scores
    keep 12@1           this one is kept by module 1, with weight 1
    threshold 0.3@0     module 0 keeps the scores above 0.3; what it calls 0 is now 0.3, for the weights too
    retention 0.5@1     module 1 keeps the half of the prompt's tokens with the highest scores
    bypass 0@0          what module 0's span changes is scaled by this factor
    dense@1             module 1 keeps everything, with weight 1

`@*` means every module. Tokens may also be named by class (`drop digits@0`) or by text (`keep "harbour gate"@*`).
Several edits in a line are separated by semicolons.

Edits come from strangers, in links too: reading one takes time linear in its length, and its size is known before it is
expanded.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from subllm.subsampling import inference_rule

from .errors import AnalysisError

KINDS = ("keep", "drop", "threshold", "retention", "bypass", "dense")
EVERY = -1
CLASSES = {
    "letters": r"[^\W\d_]+",
    "digits": r"\d+",
    "punctuation": r"[^\w\s]+",
    "spaces": r"\s+",
    "capitals": r"[A-Z]\w*",
    "words": r"\w+",
}
MOST_EDITS = 200  # in a line
MOST_CHARACTERS = 1 << 14  # of one edit
MOST_TOKENS = 1 << 18  # that the edits of a line name, each counted as often as it is named
_LARGEST = 1_000_000  # threshold or factor
_DIGITS = 6  # of the number of a token or a module


@dataclass(frozen=True)
class Edit:
    """One change to the routing.

    Attributes:
        kind: one of `KINDS`.
        span: number of the subsampling module, or `EVERY`.
        tokens: of the prompt, for "keep" and "drop".
        value: for "threshold", "retention" and "bypass".
    """

    kind: str
    span: int
    tokens: tuple[int, ...] = ()
    value: float = 0.0

    def __str__(self) -> str:
        """As `parse` reads it."""
        what = ranges(self.tokens) if self.kind in ("keep", "drop") else f"{self.value:g}"
        where = "*" if self.span == EVERY else str(self.span)
        return f"dense@{where}" if self.kind == "dense" else f"{self.kind} {what}@{where}"

    @classmethod
    def parse(cls, text: str, prompt: str = "", starts: Sequence[int] = (), ends: Sequence[int] = ()) -> "Edit":
        """Read an edit.

        Args:
            text: as in the module's docstring.
            prompt: whose tokens may be named by class or text.
            starts: (T,) first character of each token.
            ends: (T,) character past the last.

        Raises:
            AnalysisError: if it cannot be read, or names nothing; says what is allowed.
        """
        if len(text) > MOST_CHARACTERS:
            raise AnalysisError(
                f"The edit {_short(text)!r} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read. "
                "Write ranges such as 3-70, or several edits."
            )
        before, at, where = text.rpartition("@")
        kind, what = [*before.split(maxsplit=1), "", ""][:2]
        what, where = what.strip(), where.strip()
        span = EVERY if where == "*" else _number(where)
        if not at or kind not in KINDS or span is None or (kind == "dense" and what):
            raise AnalysisError(
                f"The edit {_short(text)!r} cannot be read; write one of {', '.join(KINDS)}, what, @ and the number of "
                "a subsampling module or *, such as 'drop 3-7@0' or 'threshold 0.3@*'."
            )
        if kind == "dense":
            return cls(kind, span)
        if kind in ("keep", "drop"):
            return cls(kind, span, _named(what, prompt, starts, ends))
        try:
            value = float(what)
        except ValueError:
            value = np.nan
        least, most = (0, 1) if kind == "retention" else (-_LARGEST, _LARGEST)
        if not least <= value <= most:  # nor is it where the value is no number
            raise AnalysisError(
                f"The edit {_short(text)!r} has {_short(what)!r} where {kind} needs a number from {least:,} to "
                f"{most:,}."
            )
        return cls(kind, span, value=value)


def parse_edits(text: str) -> list[Edit]:
    """Read the edits of a line, as a link has them; tokens are named by number.

    Args:
        text: edits, separated by semicolons.

    Raises:
        AnalysisError: if one cannot be read, or they are too many.
    """
    parts = [part for part in text.split(";", MOST_EDITS) if part.strip()]
    if len(parts) > MOST_EDITS:
        raise AnalysisError(f"There are more than {MOST_EDITS} edits in a line; leave some out.")
    edits: list[Edit] = []
    named = 0
    for part in parts:
        edits.append(Edit.parse(part))
        named += len(edits[-1].tokens)
        if named > MOST_TOKENS:
            raise AnalysisError(f"The edits of a line name more than {MOST_TOKENS:,} tokens; leave some out.")
    return edits


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


def _named(what: str, prompt: str, starts: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    if what[:1].isdecimal():
        return _numbered(what, len(starts))
    quoted = len(what) > 2 and what[0] in "'\"" and what[-1] == what[0]
    if not quoted and what not in CLASSES:
        raise AnalysisError(
            f"{_short(what)!r} names no tokens; write numbers such as 3-7,9, a text in quotes, or one of "
            f"{', '.join(CLASSES)}."
        )
    covered = np.zeros(len(prompt) + 1, dtype=bool)
    found = _places(what[1:-1], prompt) if quoted else (each.span() for each in re.finditer(CLASSES[what], prompt))
    for first, last in found:
        covered[first:last] = True
    tokens = tuple(t for t, (start, end) in enumerate(zip(starts, ends, strict=True)) if covered[start:end].any())
    if not tokens:
        raise AnalysisError(f"The prompt has no tokens that {_short(what)} names.")
    return tokens


def _numbered(what: str, prompt: int) -> tuple[int, ...]:
    """Tokens of numbers and ranges, once it is known how many they are.

    Args:
        what: such as "3-7,9".
        prompt: tokens of the prompt, or 0 if that is not known yet.
    """
    bounds: list[tuple[int, int]] = []
    for part in what.split(","):
        first, dash, last = part.partition("-")
        low = _number(first.strip())
        high = _number(last.strip()) if dash else low
        if low is None or high is None or low > high:
            raise AnalysisError(
                f"{_short(part)!r} in {_short(what)!r} is no token; write numbers of at most {_DIGITS} digits and "
                "ranges from the lower to the higher one, such as 3-7,9."
            )
        bounds.append((low, high))
    most = prompt or MOST_TOKENS
    if max(high for _, high in bounds) >= most:
        raise AnalysisError(
            f"The tokens {_short(what)} are not all in the prompt, which has 0 to {prompt - 1:,}."
            if prompt
            else f"The tokens {_short(what)} go beyond {most - 1:,}, the last that can be named."
        )
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


def without(edits: Sequence[Edit], tokens: Sequence[int], span: int) -> list[Edit]:
    """Edits with these tokens taken out of what is forced at a span.

    Args:
        edits: in force.
        tokens: to be left to the model again.
        span: number of the subsampling module.
    """
    rest, gone = [], set(tokens)
    for edit in edits:
        if edit.kind in ("keep", "drop") and edit.span == span:
            left = tuple(token for token in edit.tokens if token not in gone)
            if left:
                rest.append(replace(edit, tokens=left))
        else:
            rest.append(edit)
    return rest


def check(edits: Sequence[Edit], spans: int, tokens: int) -> None:
    """See that edits fit a model and a prompt.

    Args:
        edits: to be made.
        spans: subsampling modules of the model.
        tokens: of the prompt.

    Raises:
        AnalysisError: if a module or a token does not exist.
    """
    for edit in edits:
        if edit.span >= spans:
            allowed = f"it has 0 to {spans - 1}" if spans else "it has none"
            raise AnalysisError(f"The edit '{edit}' is for subsampling module {edit.span} of the model; {allowed}.")
        if edit.tokens and edit.tokens[-1] >= tokens:
            raise AnalysisError(
                f"The edit '{edit}' is for token {edit.tokens[-1]:,}; the prompt has 0 to {tokens - 1:,}."
            )


@dataclass
class EditedRouting:
    """The rule of a model with edits; see `subllm.subsampling.Rule`. Without edits it is the model's own.

    Thresholds come first, then dropped and kept tokens in the order of the edits, then the bypass.

    Attributes:
        edits: in force.
        thresholds: by subsampling module, with which a wanted retention was reached on the prompt; they hold for what
            follows it too.
        absent: tokens of the prompt that an edit names but that did not reach the module, by module.
    """

    edits: Sequence[Edit]
    thresholds: dict[int, float] = field(default_factory=dict)
    absent: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self, span: int, scores: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Kept tokens and weights."""
        mine = [edit for edit in self.edits if edit.span in (span, EVERY)]
        first = span not in self.absent  # the prompt; what follows it has other positions
        self.absent.setdefault(span, [])
        for edit in mine:
            if edit.kind == "threshold":
                scores = scores - edit.value
            elif edit.kind == "retention":
                if span not in self.thresholds:
                    present = scores if mask is None else scores[mask]
                    self.thresholds[span] = threshold_for(present.flatten(), edit.value)
                scores = scores - self.thresholds[span]
        kept, weights = inference_rule(scores)
        for edit in mine:
            if edit.kind == "dense":
                kept, weights = torch.ones_like(kept), torch.ones_like(weights)
            elif edit.tokens:
                named = torch.isin(positions, torch.tensor(edit.tokens, device=positions.device))
                kept = kept | named if edit.kind == "keep" else kept & ~named
                if edit.kind == "keep":
                    weights = weights.masked_fill(named, 1.0)
                if first and edit.span != EVERY:
                    missing = set(edit.tokens) - set(positions.flatten().tolist())
                    self.absent[span] = sorted({*self.absent[span], *missing})
        for edit in mine:
            if edit.kind == "bypass":
                weights = weights * edit.value
        return kept, weights


def threshold_for(scores: Tensor, retention: float) -> float:
    """Threshold that just some share of scores exceeds, halfway between the two next to it.

    Args:
        scores: (N,).
        retention: share, 0 to 1.
    """
    if not scores.numel():
        return 0.0
    ranked = scores.sort().values
    dropped = round((1 - retention) * ranked.numel())
    below = ranked[dropped - 1] if dropped else ranked[0] - 1
    above = ranked[dropped] if dropped < ranked.numel() else ranked[-1] + 1
    return ((below + above) / 2).item()
