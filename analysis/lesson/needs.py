"""What a run must have for an exercise, and why one is not possible."""

from collections.abc import Callable

from ..trace.trace import Trace
from .place import Place, inwards


def _has_levels(place: Place) -> str:
    return "" if place.routing.num_levels else "no_levels"


def _drops(place: Place) -> str:
    if place.routing.merges[place.row]:
        return "merges"
    if place.routing.site_kinds[place.row] != "level":
        return "heavy"
    if not place.dropped.any():
        return "keeps_all"
    return "" if place.kept.any() else "keeps_none"


def _has_blocks(place: Place) -> str:
    return "" if (place.routing.block_levels == place.level).any() else "no_blocks"


def _scores(place: Place) -> str:
    if not place.routing.scores_tokens(place.level):
        return "no_scores"
    return "" if place.kept.sum() > 1 else "keeps_none"


def _nests(place: Place) -> str:
    return "" if len(inwards(place.routing)) > 1 else "no_nesting"


def _was_timed(place: Place) -> str:
    return "" if place.trace.costs is not None and place.trace.agreement is not None else "no_costs"


def _continues(place: Place) -> str:
    return "" if place.trace.predictions is not None and place.trace.continuation is not None else "no_continuation"


def _has_no_edits(place: Place) -> str:
    where = place.trace.provenance
    return "has_edits" if where.edits or where.patch else ""


# each says why the run has it not, with the key of a sentence, or ""
NEEDS: dict[str, Callable[[Place], str]] = {
    "levels": _has_levels,
    "drops": _drops,
    "blocks": _has_blocks,
    "scores": _scores,
    "nesting": _nests,
    "costs": _was_timed,
    "continuation": _continues,
    "unedited": _has_no_edits,
}
_OF_A_LEVEL = ("drops", "blocks", "scores")


def lacking(place: Place, needs: tuple[str, ...]) -> str:
    """Why an exercise is not possible at a place, as the key of a sentence; "" if it is.

    Args:
        place: run and level.
        needs: what it needs, each one of `NEEDS`.
    """
    return next((reason for need in ("levels", *needs) if (reason := NEEDS[need](place))), "")


def level_for(trace: Trace, needs: tuple[str, ...], wanted: int) -> int:
    """A level at which an exercise is possible: the wanted one if it is, else the first one; 1 if none is.

    Args:
        trace: trace of a prompt.
        needs: what it needs, each one of `NEEDS`.
        wanted: number of a level.
    """
    own = tuple(need for need in needs if need in _OF_A_LEVEL)
    fitting = [level for level in trace.routing.levels if not lacking(Place(trace, level), own)]
    return wanted if wanted in fitting else next(iter(fitting), 1)
