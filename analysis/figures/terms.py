"""The words of each router: its name, and what its levels, scores and weights are called on screen.

A table of words holds variants of a key, and the one that fits a level best is used. In this order:

| variant | for levels |
| --- | --- |
| `{key}_{router}_predictor` | of this router, where a predictor decides at inference |
| `{key}_{router}` | of this router |
| `{key}_merging` | whose router merges tokens into groups |
| `{key}_heavy` | that choose the tokens of a heavy branch |
| `{key}_none` | without a bypass |
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..trace.flags import Flag
from ..trace.parts import Routing
from ..trace.trace import Trace
from .strings import spoken
from .words import ENGLISH, Words

if TYPE_CHECKING:
    from subllm.structure import Structure

    from ..corpus.schema import Levels

_NAMED = 12  # tokens that a flag names


class _Chosen(Mapping[str, str]):
    """Words of which some have variants; `endings` say which variants fit, the best first."""

    def __init__(self, words: Words, endings: tuple[str, ...]) -> None:
        self._words, self._endings = words, endings

    def __getitem__(self, key: str) -> str:
        for ending in self._endings:
            if (found := self._words.get(key + ending)) is not None:
                return found
        return self._words[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


def level_words(trace: Trace, level: int, words: Words = ENGLISH) -> Words:
    """Words as they fit one level.

    Args:
        trace: trace of a prompt.
        level: number of the level.
        words: labels by key, with variants.
    """
    routing, row = trace.routing, level - 1
    router = str(routing.routers[row])
    endings = [f"_{router}_predictor"] if trace.provenance.predictor else []
    endings.append(f"_{router}")
    if routing.strides[row] > 1:
        endings.append("_merging")
    if routing.site_kinds[row] != "level":
        endings.append("_heavy")
    if not routing.bypassed[row]:
        endings.append("_none")
    return _Chosen(words, tuple(endings))


def state_in_words(
    trace: Trace, level: int, reached: Sequence[bool], kept: Sequence[bool], into: int | None, words: Words
) -> str:
    """What became of a token at a level: kept, dropped or merged there, or at the outer level that it did not pass.

    Args:
        trace: trace whose levels they are.
        level: number of the level.
        reached: (S,) whether the token reached each level's router.
        kept: (S,) whether each level's blocks processed it.
        into: carrier of its group at a merging level; -1 if none has followed yet, None to leave its number out.
        words: the labels on screen, by key.
    """
    routing, own = trace.routing, level_words(trace, level, words)
    if kept[level - 1]:
        return own["view_keptState"]
    if reached[level - 1]:
        if not routing.merges[level - 1] or into is None:
            return own["view_droppedState"]
        return words["view_mergedOpen"] if into < 0 else words["view_mergedInto"].format(into=f"{into:,}")
    merged = routing.merges[stopping_level(routing, level, reached) - 1]
    return words["view_absentMergedState" if merged else "view_absentState"]


def stopping_level(routing: Routing, level: int, reached: Sequence[bool]) -> int:
    """The level whose blocks do not process a token that a level does not process: itself, or one around it.

    Args:
        routing: whose levels they are.
        level: number of the level.
        reached: (S,) whether the token reached each level's router.
    """
    while not reached[level - 1] and (parent := int(routing.parents[level - 1])):
        level = parent
    return level


def common_word(trace: Trace, key: str, words: Words = ENGLISH, between: str = " / ") -> str:
    """A word that fits all levels of a trace: their variants of it, one after another.

    Args:
        trace: trace of a prompt.
        key: of the word.
        words: labels by key, with variants.
        between: what separates the variants.
    """
    variants = [level_words(trace, level, words)[key] for level in trace.routing.levels]
    return between.join(dict.fromkeys(variants)) or words[key]


def level_name(trace: Trace, level: int, words: Words = ENGLISH) -> str:
    """Name of a level on screen: "Level 1", with the enclosing level where that is not the one before it.

    The places where a light/heavy block routes are called after the block: "Block 3 · queries".
    """
    return place_name(trace.routing, level, words)


def place_name(levels: "Routing | Levels | Structure", level: int, words: Words = ENGLISH) -> str:
    """As `level_name`.

    Args:
        levels: the levels of a trace, of a corpus result or of a structure.
        level: number of the level.
        words: labels by key.
    """
    row = level - 1
    if levels.site_kinds[row] != "level":
        return words["site"].format(n=levels.site_blocks[row], part=words[f"site_{levels.site_kinds[row]}"])
    parent = int(levels.parents[row])
    nested = parent not in (0, level - 1)
    return words["level_inside" if nested else "level"].format(n=level, parent=parent)


def flag_in_words(trace: Trace, flag: Flag, words: Words = ENGLISH) -> str:
    """A sentence about something odd.

    Args:
        trace: trace of a prompt.
        flag: one of its flags.
        words: labels by key.
    """
    named = ", ".join(f"{token:,}" for token in flag.tokens[:_NAMED])
    more = len(flag.tokens) - _NAMED
    if more > 0:
        named = words["flag_more"].format(tokens=named, more=f"{more:,}")
    return level_words(trace, flag.level, words)[f"flag_{flag.kind}"].format(
        level=level_name(trace, flag.level, words),
        tokens=named,
        share=f"{flag.share:.0%}",
        expected=f"{flag.expected:.0%}",
    )


def router_name(router: str, words: Words = ENGLISH) -> str:
    """What a router is called; one that was added by somebody else is called as it was registered.

    Args:
        router: name of a router in the configuration.
        words: labels by key.
    """
    return words.get(f"router_{router}", router)


def system_name(routers: Iterable[str], words: Words = ENGLISH) -> str:
    """What a model with these routers is called, such as "Mixture-of-Depths"; a LLaMA if it has none.

    Args:
        routers: name of each level's router.
        words: labels by key.
    """
    return " + ".join(dict.fromkeys(router_name(router, words) for router in routers)) or "LLaMA"


def device_words(device: str, words: Words) -> str:
    """A device as traces name it, with the threads of a processor in the language of the words.

    Args:
        device: such as "CPU, 2 threads".
        words: a table of strings.
    """
    cpu = re.fullmatch(r"CPU, (\d+) threads?", device)
    return device if cpu is None else spoken(words, "device_cpu", n=cpu[1])
