"""Where a learner is in a run, and which of its tokens an exercise is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor, log10

import numpy as np

from ..trace.parts import Routing
from ..trace.trace import Trace

WINDOW = 80  # tokens that are to be judged one by one; more are no exercise
_SHARE = 0.2  # of the kept tokens that the threshold of an exercise drops


@dataclass(frozen=True, eq=False)
class Place:
    """Where the learner is: a run, a level of it, and selected tokens.

    Attributes:
        trace: trace of the run.
        level: number of the level, from 1.
        tokens: selected in the text; none by default.
        measured: probability of the likeliest next token after the selected token is dropped at each level; by level,
            with the one of the run itself at 0. Empty until it is measured.
    """

    trace: Trace
    level: int = 1
    tokens: tuple[int, ...] = ()
    measured: Mapping[int, float] = field(default_factory=dict)

    @property
    def routing(self) -> Routing:
        """What the routers decided."""
        return self.trace.routing

    @property
    def row(self) -> int:
        """Row of the level in the arrays."""
        return self.level - 1

    @property
    def reached(self) -> np.ndarray:
        """(T,) True where the token reached the level."""
        row: np.ndarray = self.routing.reached[self.row]
        return row

    @property
    def kept(self) -> np.ndarray:
        """(T,) True where the level keeps the token."""
        row: np.ndarray = self.routing.kept[self.row]
        return row

    @property
    def dropped(self) -> np.ndarray:
        """(T,) True where the level drops the token."""
        row: np.ndarray = self.routing.dropped[self.row]
        return row

    def named(self, token: int) -> str:
        """A token as texts name it: its text, and its number in the prompt."""
        return f"{str(self.trace.prompt.pieces[token])!r} ({token:,})"

    def first(self, among: np.ndarray, otherwise: int) -> int:
        """The first selected token that is in a set (T,) of bool; else the given one."""
        return next((token for token in self.tokens if among[token]), otherwise)


def inwards(routing: Routing) -> list[int]:
    """The levels from an outermost to the innermost one, each in the one before."""
    chains: dict[int, list[int]] = {0: []}
    for level, parent in zip(routing.levels, routing.parents.tolist(), strict=True):
        chains[level] = [*chains[parent], level]
    return max(chains.values(), key=len)


def window(place: Place) -> np.ndarray:
    """(T,) True for `WINDOW` tokens that reached the level, or all: the first ones that it does not decide alike."""
    reached = place.reached.nonzero()[0]
    drops = place.dropped[reached]
    change = int((drops != drops[0]).argmax())  # the first that has another fate than those before it
    start = min(change - WINDOW // 2, len(reached) - WINDOW) if change >= WINDOW else 0
    near = np.zeros_like(place.reached)
    near[reached[start : start + WINDOW]] = True
    return near


def pair(place: Place) -> tuple[int, int]:
    """Two tokens that reached the level, whose scores differ: the ends of the selection, or else two that are kept."""
    chosen = [token for token in place.tokens if place.reached[token]]
    scores = place.routing.scores_of(place.level)
    if len(chosen) > 1 and scores[chosen[0]] != scores[chosen[-1]]:
        return chosen[0], chosen[-1]
    kept = place.kept.nonzero()[0]
    order = kept[np.argsort(scores[kept], kind="stable")]
    low, high = int(order[len(order) // 4]), int(order[-1 - len(order) // 8])
    return min(low, high), max(low, high)


def step(place: Place) -> float:
    """A move of the level's threshold, to two digits, that drops about a fifth of the tokens it keeps."""
    margins = (place.routing.scores_of(place.level) - place.routing.thresholds[place.row])[place.kept]
    move = float(np.quantile(margins[margins > 0], _SHARE)) if (margins > 0).any() else 0.1
    digits = 1 - floor(log10(move))
    return round(move, digits)


def doubtful(place: Place) -> int:
    """A token that a moved threshold may drop: a selected one that is kept, or the one with the closest score."""
    scores = place.routing.scores_of(place.level)
    far = np.where(place.kept, np.abs(scores - place.routing.thresholds[place.row] - step(place)), np.inf)
    return place.first(place.kept, int(far.argmin()))


def viewer_and_viewed(place: Place) -> tuple[int, int]:
    """A kept token, and one before it: the ends of the selection, or else two that the prompt's digest picks."""
    chosen = [token for token in place.tokens if place.reached[token]]
    if len(chosen) > 1 and place.kept[chosen[-1]]:
        return chosen[-1], chosen[0]
    viewer = int(place.kept.nonzero()[0][-1])
    before = place.reached.nonzero()[0]
    before = before[before < viewer]
    if not len(before):
        return viewer, viewer
    number = int(place.trace.subject, 16)
    same = before[place.kept[before] == bool(number % 2)]  # as often one that is kept as one that is not
    among = same if len(same) else before
    return viewer, int(among[number // 2 % len(among)])


def kept_and_dropped(place: Place) -> tuple[int, int]:
    """A token that the level keeps and one that it drops: selected ones, or else a kept one of the usual change."""
    kept, drops = place.kept.nonzero()[0], place.dropped.nonzero()[0]
    change = place.routing.contribution_share[place.row, kept]
    usual = int(kept[np.argsort(change, kind="stable")[len(kept) // 2]])
    return place.first(place.kept, usual), place.first(place.dropped, int(drops[len(drops) // 2]))


def key_token(place: Place) -> int:
    """The token that is dropped: a selected one that is kept, or the longest of those that get deepest.

    Once it is measured, it is the one that was measured.
    """
    if place.measured:
        return place.tokens[0]
    depth = place.routing.kept[[level - 1 for level in inwards(place.routing)]].sum(0)
    lengths = np.asarray([len(piece.strip()) for piece in place.trace.prompt.pieces.tolist()])
    among = place.kept & (depth == depth[place.kept].max())
    return place.first(place.kept, int(np.where(among, lengths, -1).argmax()))
