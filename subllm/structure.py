"""The structure mini-language: which blocks run on which tokens.

A structure is a string over three characters, read from the embedding (left) to the logits (right):

    T   one LLaMA block on the tokens that are present at this point
    (   a subsampling module: only tokens that it keeps go on
    )   the upsampling and bypass that belong to the matching "(": all tokens are present again

"TT(TT)TT" runs two blocks on all tokens, two on the kept ones, two on all. Spans nest ("T(T(T)T)T") and stand side
by side ("(T)(T)"). A structure without brackets is a LLaMA. The paper's 24-layer model is
"TTTTT(TTTTT(TTTT)TTTTT)TTTTT".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .errors import StructureError

BLOCK, OPEN, CLOSE = "T", "(", ")"


@dataclass(frozen=True)
class Span:
    """One bracket pair: a subsampling module, what runs inside it, its upsampling and bypass.

    Attributes:
        index: number in order of opening; level `index + 1` holds the tokens that it keeps.
        parent: index of the enclosing span, or None for a span on the full sequence.
        depth: nesting depth, 1 for a span on the full sequence.
        start: position of "(" in the structure string.
        stop: position of the matching ")".
    """

    index: int
    parent: int | None
    depth: int
    start: int
    stop: int


@dataclass(frozen=True)
class Step:
    """One character of the structure, resolved.

    Attributes:
        symbol: "T", "(" or ")".
        index: block number for "T", span number (in order of opening) for brackets.
    """

    symbol: str
    index: int


@dataclass(frozen=True)
class Structure:
    """A parsed structure string; see the module's docstring for the language.

    Attributes:
        text: the string itself.
        steps: one step per character.
        spans: bracket pairs in order of opening.
    """

    text: str
    steps: tuple[Step, ...]
    spans: tuple[Span, ...]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def open_spans(self, step: int) -> list[int]:
        """Spans that are open after some characters, from the outermost to the innermost.

        Args:
            step: how many characters.
        """
        return [span.index for span in self.spans if span.start < step <= span.stop]

    @cached_property
    def num_blocks(self) -> int:
        """Number of LLaMA blocks."""
        return self.text.count(BLOCK)

    @cached_property
    def block_spans(self) -> tuple[int | None, ...]:
        """For each block the innermost span around it, or None where it runs on all tokens."""
        owners: list[int | None] = []
        open_spans: list[int] = []
        for step in self.steps:
            if step.symbol == OPEN:
                open_spans.append(step.index)
            elif step.symbol == CLOSE:
                open_spans.pop()
            else:
                owners.append(open_spans[-1] if open_spans else None)
        return tuple(owners)

    @cached_property
    def closing_order(self) -> tuple[int, ...]:
        """Span numbers in the order of their ")": how the reference numbers its bypasses."""
        return tuple(step.index for step in self.steps if step.symbol == CLOSE)

    def block_shares(self, retention_ratios: list[float]) -> list[float]:
        """Share of the prompt's tokens that each block processes, if every span keeps its ratio of its parent.

        Args:
            retention_ratios: share kept, one per span in order of opening.

        Returns:
            One number in (0, 1] per block.
        """
        shares: list[float] = []
        for span in self.spans:
            shares.append(retention_ratios[span.index] * (1.0 if span.parent is None else shares[span.parent]))
        return [1.0 if owner is None else shares[owner] for owner in self.block_spans]


@lru_cache(maxsize=256)
def parse_structure(text: str) -> Structure:
    """Read a structure string.

    Args:
        text: a string over "T", "(" and ")".

    Returns:
        The parsed structure.

    Raises:
        StructureError: if the string is empty, has another character, or its brackets do not match.
    """
    if not isinstance(text, str) or not text:
        raise StructureError(
            f"The structure is {text!r}; expected a non-empty string over 'T', '(' and ')', such as 'TT(TT)TT'."
        )
    steps: list[Step] = []
    starts: list[int] = []  # position of "(" per span, in order of opening
    stops: dict[int, int] = {}
    parents: list[int | None] = []
    open_spans: list[int] = []
    blocks = 0
    for position, symbol in enumerate(text):
        if symbol == BLOCK:
            steps.append(Step(BLOCK, blocks))
            blocks += 1
        elif symbol == OPEN:
            parents.append(open_spans[-1] if open_spans else None)
            open_spans.append(len(starts))
            steps.append(Step(OPEN, len(starts)))
            starts.append(position)
        elif symbol == CLOSE:
            if not open_spans:
                raise StructureError(
                    f"The structure {text!r} closes a bracket at position {position} that was never opened; "
                    "every ')' needs a '(' before it."
                )
            span = open_spans.pop()
            stops[span] = position
            steps.append(Step(CLOSE, span))
        else:
            raise StructureError(
                f"The structure {text!r} has {symbol!r} at position {position}; only 'T', '(' and ')' are allowed."
            )
    if open_spans:
        raise StructureError(
            f"The structure {text!r} opens a bracket at position {starts[open_spans[-1]]} that is never closed; "
            "add the missing ')'."
        )
    if not blocks:
        raise StructureError(f"The structure {text!r} has no block; it needs at least one 'T'.")
    spans: list[Span] = []
    for index, (start, parent) in enumerate(zip(starts, parents, strict=True)):
        depth = 1 if parent is None else spans[parent].depth + 1
        spans.append(Span(index, parent, depth, start, stops[index]))
    return Structure(text, tuple(steps), tuple(spans))
