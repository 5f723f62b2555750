"""Options and events of a forward pass: what it records, who observes and decides, and where it resumes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..routing import Override
from .levels import Snapshot, Tokens
from .light_heavy import Branch


@dataclass(frozen=True)
class Opened:
    """A router decided, and its level was entered.

    Attributes:
        level: number of the level, from 1.
        before: tokens of the level outside.
        after: tokens that the router kept; `after.entry` says how they were selected.
    """

    level: int
    before: Tokens
    after: Tokens


@dataclass(frozen=True)
class Ran:
    """A block ran. The event also occurs for blocks whose level has no tokens.

    Attributes:
        block: number of the block, from 0.
        level: level of the tokens that it processed; 0 for the whole sequence.
        before: tokens with the stream that went in.
        after: the same tokens with the stream that came out.
        branches: what the routers of a light/heavy block decided and added, in the order of their levels; () for a
            LLaMA block.
    """

    block: int
    level: int
    before: Tokens
    after: Tokens
    branches: tuple[Branch, ...] = ()


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
    """What to do in a forward pass besides computing its result.

    Attributes:
        record: return the routing.
        observe: called with every event, in order. An exception that it raises stops the pass and leaves the cache
            unchanged.
        override: called at every level to decide in place of the router.
        keep_snapshots: keep the state before each router decides, in `snapshots`.
        resume: state to resume from; the steps before it are not run again. Every row resumes from the same state.
        snapshots: kept states by level; the forward pass fills them in.
    """

    record: bool = False
    observe: Callable[[Event], None] | None = None
    override: Override | None = None
    keep_snapshots: bool = False
    resume: Snapshot | None = None
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


PLAIN = Probe()  # computes the result and nothing else
