"""The structure mini-language: which blocks run on which tokens.

A structure is a string over three characters, read from the embedding (left) to the logits (right):

    T   one LLaMA block on the tokens that are present at this point
    (   a router: only the tokens that it keeps enter the level
    )   the upsampling and bypass that belong to the matching "(": all tokens are present again

"TT(TT)TT" runs two blocks on all tokens, two on the kept ones, two on all. Brackets nest ("T(T(T)T)T") and stand
side by side ("(T)(T)"). A structure without brackets is a LLaMA. The paper's 24-layer model is
"TTTTT(TTTTT(TTTT)TTTTT)TTTTT".

A place where a router decides is a site. Each has a level, a number from 1 in reading order, which also names
the tokens that it keeps; level 0 is the whole sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .errors import StructureError

BLOCK, OPEN, CLOSE = "T", "(", ")"


WHOLE = 0  # level of the whole sequence


@dataclass(frozen=True)
class Site:
    """One bracket pair: a router, the blocks of its level, upsampling and bypass.

    Attributes:
        level: number from 1, in order of opening.
        parent: level whose tokens the router decides about; 0 for the whole sequence.
        depth: nesting depth, 1 for a level inside the whole sequence.
        start: position of "(" in the structure string.
        stop: position of the matching ")".
    """

    level: int
    parent: int
    depth: int
    start: int
    stop: int


@dataclass(frozen=True)
class Step:
    """One character of the structure, resolved.

    Attributes:
        symbol: "T", "(" or ")".
        index: block number, from 0, for "T"; level for brackets.
    """

    symbol: str
    index: int


@dataclass(frozen=True)
class Structure:
    """A parsed structure string; see the module's docstring for the language.

    Attributes:
        text: the string itself.
        steps: one step per character.
        sites: bracket pairs, in the order of their levels.
    """

    text: str
    steps: tuple[Step, ...]
    sites: tuple[Site, ...]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def num_levels(self) -> int:
        """Number of levels besides that of the whole sequence."""
        return len(self.sites)

    @cached_property
    def num_blocks(self) -> int:
        """Number of LLaMA blocks."""
        return self.text.count(BLOCK)

    @cached_property
    def block_levels(self) -> tuple[int, ...]:
        """Level whose tokens each block processes."""
        levels: list[int] = []
        open_levels = [WHOLE]
        for step in self.steps:
            if step.symbol == OPEN:
                open_levels.append(step.index)
            elif step.symbol == CLOSE:
                open_levels.pop()
            else:
                levels.append(open_levels[-1])
        return tuple(levels)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of each level, in order of the levels."""
        return tuple(site.parent for site in self.sites)

    @cached_property
    def closing_order(self) -> tuple[int, ...]:
        """Levels in the order of their ")": how the reference numbers its bypasses."""
        return tuple(step.index for step in self.steps if step.symbol == CLOSE)

    def level_shares(self, retention_ratios: Sequence[float]) -> list[float]:
        """Share of the prompt's tokens at each level, level 0 first, if every router keeps its ratio of its parent.

        Args:
            retention_ratios: share kept, one per level from 1 on.

        Returns:
            One number in (0, 1] per level.
        """
        shares = [1.0]
        for site, ratio in zip(self.sites, retention_ratios, strict=True):
            shares.append(ratio * shares[site.parent])
        return shares


@lru_cache(maxsize=256)
def parse_structure(text: str) -> Structure:
    """Parse a structure string.

    Raises:
        StructureError: if the string is empty, has another character, or its brackets do not match.

    >>> structure = parse_structure("T(T(T)T)T")
    >>> structure.block_levels
    (0, 1, 2, 1, 0)
    >>> structure.level_shares([0.5, 0.5])
    [1.0, 0.5, 0.25]
    """
    if not isinstance(text, str) or not text:
        raise StructureError(
            "The structure is {text!r}; it must be a non-empty string of 'T', '(' and ')', such as 'TT(TT)TT'.",
            text=text,
        )
    steps: list[Step] = []
    starts: list[int] = []  # position of "(" by level, from 1
    stops: dict[int, int] = {}
    parents: list[int] = []
    open_levels = [WHOLE]
    blocks = 0
    for position, symbol in enumerate(text):
        if symbol == BLOCK:
            steps.append(Step(BLOCK, blocks))
            blocks += 1
        elif symbol == OPEN:
            parents.append(open_levels[-1])
            starts.append(position)
            open_levels.append(len(starts))
            steps.append(Step(OPEN, len(starts)))
        elif symbol == CLOSE:
            if len(open_levels) == 1:
                raise StructureError(
                    "The structure {text!r} closes a bracket at position {position} that was never opened; "
                    "every ')' needs a '(' before it.",
                    text=text,
                    position=position,
                )
            level = open_levels.pop()
            stops[level] = position
            steps.append(Step(CLOSE, level))
        else:
            raise StructureError(
                "The structure {text!r} has {symbol!r} at position {position}; only 'T', '(' and ')' are allowed.",
                text=text,
                symbol=symbol,
                position=position,
            )
    if len(open_levels) > 1:
        raise StructureError(
            "The structure {text!r} opens a bracket at position {position} that is never closed; add the missing ')'.",
            text=text,
            position=starts[open_levels[-1] - 1],
        )
    if not blocks:
        raise StructureError("The structure {text!r} has no block; it needs at least one 'T'.", text=text)
    sites: list[Site] = []
    for level, (start, parent) in enumerate(zip(starts, parents, strict=True), start=1):
        depth = 1 if parent == WHOLE else sites[parent - 1].depth + 1
        sites.append(Site(level, parent, depth, start, stops[level]))
    return Structure(text, tuple(steps), tuple(sites))
