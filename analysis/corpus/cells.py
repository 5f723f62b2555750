"""What tokens are told apart by: groups of cells, such as the kinds of tokens, and the cell of every token.

The names of groups and cells are those in the tables of a summary; the app has words for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .schema import FIRST_TOKENS, KINDS, SCRIPTS, SEGMENTS, WORDS, Flag
from .shards import Tokens

BANDS = (10_000, 1_000, 100, 10)  # occurrences per million tokens from which a type is in each band of frequency
_PLACES = (1, 2, 3, 4, 16, 64, 256, 1024)  # where bands of the place in a window end
_DECILES = 10


@dataclass(frozen=True, eq=False)
class Group:
    """Cells that tokens are divided into.

    Attributes:
        name: of the group.
        cells: their names.
        codes: from a shard to (N,) the number of each token's cell; the number of cells for a token in none of them.
    """

    name: str
    cells: tuple[str, ...]
    codes: Callable[[Tokens], np.ndarray]


def groups(frequencies: np.ndarray, window: int) -> list[Group]:
    """The groups that every corpus has.

    Args:
        frequencies: occurrences of each id in the corpus, per million tokens.
        window: tokens that the model read together.
    """
    bands = np.digitize(frequencies, BANDS[::-1])  # 0 for the rarest
    return [
        Group("all", ("all",), lambda tokens: np.zeros(len(tokens), dtype=np.int64)),
        _column("kind", KINDS),
        _column("word", WORDS),
        Group("frequency", FREQUENCIES, lambda tokens: len(BANDS) - bands[tokens.columns["id"]]),
        Group("place", PLACES, lambda tokens: np.digitize(tokens.columns["position"] % window, _PLACES)),
        Group("decile", tuple(map(str, range(1, _DECILES + 1))), _decile),
        _flags("part", {"start": Flag.WORD_START, "inside": Flag.WORD_INSIDE}),
        _flags("repeated", {"yes": Flag.REPEATED}),
        _flags("line", {"start": Flag.LINE_START, "indent": Flag.INDENT}),
        _flags("quoted", {"yes": Flag.QUOTED}),
        _flags("bracketed", {"yes": Flag.BRACKETED}),
        _flags("code", {"yes": Flag.CODE}),
        _flags("capital", {"yes": Flag.CAPITAL}),
        _flags("special", {"yes": Flag.SPECIAL}),
        _column("script", SCRIPTS),
        _column("segment", SEGMENTS),
        _flags("question", {"yes": Flag.QUESTION}),
    ]


FREQUENCIES = (*map(str, BANDS), "0")
"""Cells of the frequency: the least number of occurrences per million tokens."""

PLACES = ("0", "1", "2", "3", "4-15", "16-63", "64-255", "256-1023", "1024-")
"""Cells of the place in a window, from 0; the first ones alone, since models treat them in their own way."""

assert len(PLACES) == len(_PLACES) + 1
assert PLACES.index("4-15") == FIRST_TOKENS

COLUMNS = ("id", "kept", "position", "kind", "word", "script", "segment", "flags")
"""Columns that the groups read."""


def _column(name: str, cells: tuple[str, ...]) -> Group:
    return Group(name, cells, lambda tokens: tokens.columns[name].astype(np.int64))


def _flags(name: str, cells: Mapping[str, Flag]) -> Group:
    """A group of the first flag that a token has; those without any are in the cell "no"."""

    def coded(tokens: Tokens) -> np.ndarray:
        flags = tokens.columns["flags"]
        return np.select([(flags & int(flag)) > 0 for flag in cells.values()], range(len(cells)), len(cells))

    return Group(name, (*cells, "no"), coded)


def _decile(tokens: Tokens) -> np.ndarray:
    lengths = tokens.documents["tokens"].to_numpy()[tokens.local]
    return np.minimum(tokens.columns["position"].astype(np.int64) * _DECILES // lengths, _DECILES - 1)


def chosen(name: str, column: str, values: np.ndarray) -> Group:
    """A group with a cell for each of some values of a column, and tokens of other values in none.

    Args:
        name: of the group.
        column: of the table of tokens.
        values: (C,) different ones.
    """
    order = np.argsort(values, kind="stable")

    def coded(tokens: Tokens) -> np.ndarray:
        column_ = tokens.columns[column]
        places = np.minimum(np.searchsorted(values, column_, sorter=order), max(len(values) - 1, 0))
        return np.where(values[order[places]] == column_, order[places], len(values)) if len(values) else places

    return Group(name, tuple(str(value) for value in values.tolist()), coded)
