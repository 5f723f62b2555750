"""The structure mini-language: which blocks run on which tokens.

A structure is a string over four characters, read from the embedding (left) to the logits (right):

    T   one LLaMA block on the tokens that are present at this point
    C   one light/heavy block: a light branch on these tokens, heavy branches on those of them that its routers keep
    (   a router: only the tokens that it keeps enter the level
    )   the upsampling and bypass that belong to the matching "(": all tokens are present again

"TT(TT)TT" runs two blocks on all tokens, two on the kept ones, two on all. Brackets nest ("T(T(T)T)T") and stand
side by side ("(T)(T)"). A structure without brackets is a LLaMA. The paper's 24-layer model is
"TTTTT(TTTTT(TTTT)TTTTT)TTTTT", and "CCCC" is a small CoLT5.

A place where a router decides is a site. Each has a level, a number from 1 in reading order, which also names
the tokens that it keeps; level 0 is the whole sequence. A bracket pair is one site, and a light/heavy block three: it
chooses queries, keys and values, and tokens of the MLP. The block itself stands in the level around it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from .errors import StructureError

BLOCK, LIGHT_HEAVY, OPEN, CLOSE = "T", "C", "(", ")"

WHOLE = 0  # level of the whole sequence
BRACKETS = "level"  # kind of the site of a bracket pair
LIGHT_HEAVY_SITES = ("query", "key_value", "mlp")  # kinds of the sites of a light/heavy block, in their order


@dataclass(frozen=True)
class Site:
    """A place where a router decides: a bracket pair, or one of the three choices of a light/heavy block.

    Attributes:
        level: number from 1, in reading order.
        parent: level whose tokens the router decides about; 0 for the whole sequence.
        depth: nesting depth, 1 for a level inside the whole sequence.
        start: position of "(" or "C" in the structure string.
        stop: position of the matching ")"; that of the "C" itself.
        kind: "level" for a bracket pair, else "query", "key_value" or "mlp".
        block: number of the light/heavy block, -1 for a bracket pair.
    """

    level: int
    parent: int
    depth: int
    start: int
    stop: int
    kind: str = BRACKETS
    block: int = -1


@dataclass(frozen=True)
class Step:
    """One character of the structure, resolved.

    Attributes:
        symbol: "T", "C", "(" or ")".
        index: block number, from 0, for "T" and "C"; level for brackets.
    """

    symbol: str
    index: int


@dataclass(frozen=True)
class Structure:
    """A parsed structure string; see the module's docstring for the language.

    Attributes:
        text: the string itself.
        steps: one step per character.
        sites: places where a router decides, in the order of their levels.
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
        """Number of blocks, of both kinds."""
        return self.text.count(BLOCK) + self.text.count(LIGHT_HEAVY)

    @cached_property
    def brackets(self) -> dict[int, int]:
        """Number of each bracket pair, from 0 in order of opening, by its level."""
        pairs = [site.level for site in self.sites if site.kind == BRACKETS]
        return {level: number for number, level in enumerate(pairs)}

    @cached_property
    def light_heavy(self) -> dict[int, tuple[Site, ...]]:
        """The three sites of each light/heavy block, by its number."""
        own = [site for site in self.sites if site.kind != BRACKETS]
        return {own[at].block: tuple(own[at : at + 3]) for at in range(0, len(own), 3)}

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
    def runs(self) -> dict[int, range]:
        """LLaMA blocks that follow each other without anything else between them, by the first of them."""
        found: dict[int, range] = {}
        done = 0
        for run in re.findall(f"{BLOCK}+|{LIGHT_HEAVY}", self.text):
            if run != LIGHT_HEAVY:
                found[done] = range(done, done + len(run))
            done += len(run)
        return found

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Parent of each level, in order of the levels."""
        return tuple(site.parent for site in self.sites)

    @cached_property
    def site_kinds(self) -> tuple[str, ...]:
        """Kind of each site, in order of the levels."""
        return tuple(site.kind for site in self.sites)

    @cached_property
    def site_blocks(self) -> tuple[int, ...]:
        """Light/heavy block of each site, -1 for a bracket pair, in order of the levels."""
        return tuple(site.block for site in self.sites)

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
    >>> [(site.level, site.kind) for site in parse_structure("C(T)").sites]
    [(1, 'query'), (2, 'key_value'), (3, 'mlp'), (4, 'level')]
    """
    if not isinstance(text, str) or not text:
        raise StructureError(
            "The structure is {text!r}; it must be a non-empty string of 'T', 'C', '(' and ')', such as 'TT(TT)TT'.",
            text=text,
        )
    steps: list[Step] = []
    sites: list[Site] = []  # the stop of a bracket pair is known when it closes
    open_levels = [WHOLE]
    blocks = 0
    for position, symbol in enumerate(text):
        parent = open_levels[-1]
        depth = 1 if parent == WHOLE else sites[parent - 1].depth + 1
        if symbol in (BLOCK, LIGHT_HEAVY):
            if symbol == LIGHT_HEAVY:
                for kind in LIGHT_HEAVY_SITES:
                    sites.append(Site(len(sites) + 1, parent, depth, position, position, kind, blocks))
            steps.append(Step(symbol, blocks))
            blocks += 1
        elif symbol == OPEN:
            sites.append(Site(len(sites) + 1, parent, depth, position, position))
            open_levels.append(len(sites))
            steps.append(Step(OPEN, len(sites)))
        elif symbol == CLOSE:
            if parent == WHOLE:
                raise StructureError(
                    "The structure {text!r} closes a bracket at position {position} that was never opened; "
                    "every ')' needs a '(' before it.",
                    text=text,
                    position=position,
                )
            open_levels.pop()
            sites[parent - 1] = replace(sites[parent - 1], stop=position)
            steps.append(Step(CLOSE, parent))
        else:
            raise StructureError(
                "The structure {text!r} has {symbol!r} at position {position}; only 'T', 'C', '(' and ')' are allowed.",
                text=text,
                symbol=symbol,
                position=position,
            )
    if len(open_levels) > 1:
        raise StructureError(
            "The structure {text!r} opens a bracket at position {position} that is never closed; add the missing ')'.",
            text=text,
            position=sites[open_levels[-1] - 1].start,
        )
    if not blocks:
        raise StructureError("The structure {text!r} has no block; it needs at least one 'T' or 'C'.", text=text)
    return Structure(text, tuple(steps), tuple(sites))
