"""The one instrument of a forward pass: what it records, whom it tells, who decides, and where it goes on from."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..routing import Override
from .levels import Snapshot, Tokens


@dataclass(frozen=True)
class Opened:
    """A router decided, and its level was entered.

    Attributes:
        level: number of the level, from 1.
        before: tokens of the level outside.
        after: the kept ones among them; `after.entry` says how they were selected.
    """

    level: int
    before: Tokens
    after: Tokens


@dataclass(frozen=True)
class Ran:
    """A block ran. It is told of blocks whose level has no tokens, too.

    Attributes:
        block: its number, from 0.
        level: whose tokens it processed; 0 for the whole sequence.
        before: its tokens.
        after: the same tokens with the stream that came out.
    """

    block: int
    level: int
    before: Tokens
    after: Tokens


@dataclass(frozen=True)
class Closed:
    """A level was left.

    Attributes:
        level: number of the level, from 1.
        before: tokens of the level outside, before the level was entered.
        inside: the kept tokens after the level's last block.
        after: tokens of the level outside, with what the bypass added.
    """

    level: int
    before: Tokens
    inside: Tokens
    after: Tokens


Event = Opened | Ran | Closed


@dataclass(frozen=True)
class Probe:
    """What is wanted of a forward pass beside its result.

    Attributes:
        record: return the routing.
        observe: told of every event, in order. An exception that it raises stops the forward and leaves the cache as it
            was.
        override: decides at every level in place of the routers.
        keep_snapshots: keep the state before each router decides, in `snapshots`.
        resume: state to go on from; the steps before it are not run again. Every row goes on from the same one.
        snapshots: by level, filled by the forward.
    """

    record: bool = False
    observe: Callable[[Event], None] | None = None
    override: Override | None = None
    keep_snapshots: bool = False
    resume: Snapshot | None = None
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


PLAIN = Probe()  # of a forward of which nothing else is wanted; keeps nothing
