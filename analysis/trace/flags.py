"""Odd things about a trace's routing that are worth a look: flags, which are no errors."""

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from .parts import Prompt, Routing
from .trace import Trace

_ENOUGH = 8  # tokens that tell something about a level
_SATURATED = 0.9  # share of the kept tokens
_OFF_TARGET = 0.1  # beside what chance explains
_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[[A-Z_]{1,20}\]")  # "<|im_end|>", "<s>", "[CLS]"


class FlagKind(StrEnum):
    """Kinds of flags; on screen, their words are `flag_{kind}`."""

    ALL = "all"
    """The level keeps every token that reaches it, and so saves nothing."""
    NOTHING = "nothing"
    """The level keeps no token, and so its blocks do nothing."""
    OFF_TARGET = "off_target"
    """The retention is far from the nominal one."""
    SATURATED = "saturated"
    """Nearly all kept tokens have the weight 1, where it is cut off whatever the score."""
    SPECIAL_DROPPED = "special_dropped"
    """The level drops tokens that structure the text, such as the marks of a chat."""


@dataclass(frozen=True)
class Flag:
    """One odd thing about one level.

    Attributes:
        kind: what is odd.
        level: number of the level.
        tokens: tokens of the prompt that are meant; empty where it is all that reach the level.
        share: of the tokens that reach the level, those kept; of the kept ones, those with the weight 1.
        expected: nominal retention of the level.
    """

    kind: FlagKind
    level: int
    tokens: tuple[int, ...]
    share: float
    expected: float


def flags(trace: Trace) -> list[Flag]:
    """What is odd about a trace, level by level; levels that few tokens reach tell nothing.

    A retention is off its target if it differs from the nominal one by more than 0.1 and two standard errors of a
    share, which are at most 1/√n for n tokens. Levels that merge tokens keep what their stride says.
    """
    special, found = special_tokens(trace.prompt), list[Flag]()
    for level in trace.routing.levels:
        found += _flags_of(trace.routing, level, special)
    return found


def _flags_of(routing: Routing, level: int, special: np.ndarray) -> list[Flag]:
    row, found = level - 1, list[Flag]()
    reached, kept = int(routing.reached[row].sum()), int(routing.kept[row].sum())
    share, nominal = float(routing.retention[row]), float(routing.retention_ratios[row])

    def add(kind: FlagKind, tokens: np.ndarray, share: float) -> None:
        found.append(Flag(kind, level, tuple(np.flatnonzero(tokens).tolist()), share, nominal))

    nobody = np.zeros(0, dtype=bool)
    if reached >= _ENOUGH and not routing.merges[row]:
        if kept == reached and nominal < 1:
            add(FlagKind.ALL, nobody, share)
        elif not kept:
            add(FlagKind.NOTHING, nobody, share)
        elif abs(share - nominal) > _OFF_TARGET + reached**-0.5:
            add(FlagKind.OFF_TARGET, nobody, share)
    if kept >= _ENOUGH and routing.routers[row] == "subllm":  # the one whose weight is its score, cut off at 1
        saturated = routing.weights[row, routing.kept[row]] >= 1
        if saturated.mean() >= _SATURATED:
            add(FlagKind.SATURATED, nobody, float(saturated.mean()))
    lost = routing.dropped[row] & special
    if kept and lost.any() and routing.site_kinds[row] == "level":  # in other places they are processed all the same
        add(FlagKind.SPECIAL_DROPPED, lost, share)
    return found


def special_tokens(prompt: Prompt) -> np.ndarray:
    """(T,) True at tokens that are spelled as special ones are; a trace does not record the tokenizer's list."""
    spelled = {piece: _SPECIAL.fullmatch(piece) is not None for piece in set(prompt.pieces.tolist())}
    return np.array([spelled[piece] for piece in prompt.pieces.tolist()], dtype=bool)
