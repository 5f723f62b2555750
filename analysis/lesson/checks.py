"""The questions of the lesson's stops, and how an answer is judged on the run on screen; no answer is typed in.

A stop names a check of `CHECKS`. Its texts have placeholders for the values of the check's verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from .formulas import Value, cost, grid, nesting
from .place import Place, doubtful, kept_and_dropped, key_token, pair, step, viewer_and_viewed, window

_NEAR = 0.1  # of the true number
_POINTS = 0.05  # of a share
_FASTER = 1.03  # ratio of times from which a run is faster at all


class Kind(StrEnum):
    """How a question is answered."""

    MARKS = "marks"  # tokens in the text
    NUMBER = "number"
    SHARE = "share"  # a number from 0 to 1, asked for in per cent
    CHOICE = "choice"


@dataclass(frozen=True)
class Task:
    """A question about a run.

    Attributes:
        kind: how it is answered.
        expected: the right answer: a set of tokens, a number, or one of the options; None until it is measured.
        options: keys of what can be chosen.
        labels: of options that name tokens or levels; others are named in the lesson.
        among: tokens that can be marked.
    """

    kind: Kind
    expected: frozenset[int] | float | str | None
    options: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    among: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """How an answer was judged.

    Attributes:
        right: whether it counts as right.
        values: for the placeholders of the stop's texts.
    """

    right: bool
    values: Mapping[str, Value] = field(default_factory=dict)


Given = frozenset[int] | float | str


@dataclass(frozen=True)
class Check:
    """A question, and the judge of its answers.

    Attributes:
        needs: what the run must have, each one of `analysis.lesson.formulas.NEEDS`.
        names: of the values of its verdicts.
        task: the question at a place.
        judge: the verdict about an answer.
    """

    needs: tuple[str, ...]
    names: frozenset[str]
    task: Callable[[Place], Task]
    judge: Callable[[Task, Given], Verdict]


def _marks(task: Task, given: Given) -> Verdict:
    """Agreement of marked tokens with the level's own, beside what as many marks by chance would hit.

    Fewer marks than the level drops are not right: a single lucky one would be.
    """
    assert isinstance(given, frozenset) and isinstance(task.expected, frozenset)
    hits, marked = len(given & task.expected), len(given)
    chance = marked * len(task.expected) / max(len(task.among), 1)
    return Verdict(
        hits > chance and marked >= len(task.expected), {"hits": hits, "marked": marked, "by_chance": chance}
    )


def _near(task: Task, given: Given) -> Verdict:
    assert isinstance(given, int | float) and isinstance(task.expected, int | float)
    within = _POINTS if task.kind is Kind.SHARE else _NEAR * abs(task.expected)
    return Verdict(abs(given - task.expected) <= within + 1e-9, {"given": float(given)})


def _equal(task: Task, given: Given) -> Verdict:
    return Verdict(given == task.expected)


def _choice(expected: str, options: Sequence[str], labels: Sequence[str] = ()) -> Task:
    return Task(Kind.CHOICE, expected, tuple(options), dict(zip(options, labels, strict=False)))


def _dropped(place: Place) -> Task:
    near = window(place)
    among = tuple(map(int, near.nonzero()[0]))
    return Task(Kind.MARKS, frozenset(map(int, (near & place.dropped).nonzero()[0])), among=among)


def _saved(place: Place) -> Task:
    return Task(Kind.NUMBER, float(grid(place).values["saved"]))


def _higher(place: Place) -> Task:
    tokens = pair(place)
    scores = place.routing.scores_of(place.level)[list(tokens)]
    return _choice(("one", "two")[int(scores.argmax())], ("one", "two"), [place.named(token) for token in tokens])


def _survives(place: Place) -> Task:
    score = place.routing.scores_of(place.level)[doubtful(place)]
    return _choice("yes" if score > place.routing.thresholds[place.row] + step(place) else "no", ("yes", "no"))


def _innermost(place: Place) -> Task:
    return Task(Kind.SHARE, float(nesting(place).values["share"]))


def _sees(place: Place) -> Task:
    viewer, viewed = viewer_and_viewed(place)
    return _choice("yes" if place.kept[viewer] and place.kept[viewed] and viewed <= viewer else "no", ("yes", "no"))


def _carries(place: Place) -> Task:
    added = place.routing.contribution_norm[place.row, kept_and_dropped(place)[1]]
    return _choice("same" if added == 0 else "changed", ("nothing", "same", "changed"))


def _faster(place: Place) -> Task:
    values = cost(place).values
    speed, hoped = float(values["speed"]), float(values["hoped"])
    found = "hoped" if speed >= (1 - _NEAR) * hoped else "some" if speed >= _FASTER else "none"
    return _choice(found, ("hoped", "some", "none"))


def levels_to_measure(place: Place) -> list[int]:
    """Levels at which the token of the question can be dropped, or was, once that is measured."""
    if place.measured:
        return sorted({*place.measured} - {0})
    token = key_token(place)
    return [level for level in place.routing.levels if place.routing.kept[level - 1, token]]


def _mattered(place: Place) -> Task:
    """Levels that keep the token, from the outermost on; dropping it at one drops it at those inside as well."""
    options = [str(level) for level in levels_to_measure(place)]
    if not place.measured:
        return Task(Kind.CHOICE, None, tuple(options), {each: each for each in options})
    changes = [abs(place.measured[int(each)] - place.measured[0]) for each in options]
    return _choice(options[int(np.argmax(changes))], options, options)


CHECKS = {
    "dropped": Check(("drops",), frozenset({"hits", "marked", "by_chance"}), _dropped, _marks),
    "saved": Check(("levels",), frozenset({"given"}), _saved, _near),
    "higher": Check(("scores",), frozenset(), _higher, _equal),
    "survives": Check(("scores",), frozenset(), _survives, _equal),
    "innermost": Check(("nesting",), frozenset({"given"}), _innermost, _near),
    "sees": Check(("drops", "blocks"), frozenset(), _sees, _equal),
    "carries": Check(("drops",), frozenset(), _carries, _equal),
    "faster": Check(("costs",), frozenset(), _faster, _equal),
    "mattered": Check(("drops", "continuation", "unedited"), frozenset(), _mattered, _equal),
}
OPTIONS = {  # that a lesson names; those of other checks name tokens or levels
    "survives": ("yes", "no"),
    "sees": ("yes", "no"),
    "carries": ("nothing", "same", "changed"),
    "faster": ("hoped", "some", "none"),
}
