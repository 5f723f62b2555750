"""Text that asks for what was said before: passages that come twice, and numbers that are asked for again.

A model that drops tokens has to find them all the same, and ordinary text seldom asks for that.
"""

import random
from collections.abc import Iterator, Sequence

DISTANCE, LEAST_DISTANCE = 2500, 400  # characters; a passage that comes twice has at least as many as the second
_LISTED = (3, 25)  # numbers: at least the first, less than the second
MOST_LISTED = _LISTED[1] - 1
_AGAIN = 8  # of them that come again, at most
_DIGITS = (1, 6)  # likewise
_STYLES = (
    "{topic}: {number}",
    "{number} {topic}",
    "{topic} = {number}",
    "The number of {topic} is {number}.",
    "{topic} has {number} points.",
)


def passages_twice(
    sources: Sequence[Sequence[str]], count: int, rng: random.Random, distance: int = DISTANCE
) -> Iterator[str]:
    """Passages of documents, each followed by itself.

    Args:
        sources: documents by source; every source has the same share.
        count: number of texts.
        rng: chooses the passages.
        distance: passages are shorter than this many characters.
    """
    for _ in range(count):
        passage = _passage(sources, (LEAST_DISTANCE, distance), rng)
        yield f"{passage}\n\n{passage}\n"


def numbers_again(
    sources: Sequence[Sequence[str]],
    topics: Sequence[str],
    count: int,
    rng: random.Random,
    distance: int = DISTANCE,
) -> Iterator[str]:
    """Lists of numbers of topics, a passage, and some of the numbers again.

    Args:
        sources: documents by source; every source has the same share.
        topics: that have the numbers, from `subllm.text.chats.find_topics`.
        count: number of texts.
        rng: chooses all of it.
        distance: passages are shorter than this many characters.
    """
    for _ in range(count):
        picked = rng.sample(topics, rng.randrange(*_LISTED))
        style = rng.choice(_STYLES)
        lines = [style.format(topic=topic, number=rng.randrange(10 ** rng.randrange(*_DIGITS))) for topic in picked]
        between = _passage(sources, (0, distance), rng)
        again = rng.sample(lines, min(len(lines), _AGAIN))
        yield "\n".join([*lines, "", between, "", *again, ""])


def _passage(sources: Sequence[Sequence[str]], length: tuple[int, int], rng: random.Random) -> str:
    text = rng.choice(rng.choice(sources))
    size = rng.randrange(*length)
    start = rng.randrange(max(len(text) - size, 0) + 1)
    return text[start : start + size].strip()
