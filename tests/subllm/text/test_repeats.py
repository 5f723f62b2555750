"""Text that asks for what was said before."""

import random
import re

from subllm.text.repeats import DISTANCE, MOST_LISTED, numbers_again, passages_twice

SOURCES = [["The cat sat on the mat. " * 200, "short"], ["A dog barked at the old tree. " * 100]]
TOPICS = [f"topic {number}" for number in range(MOST_LISTED)]


def test_every_passage_comes_twice_and_is_a_part_of_a_document():
    texts = [*passages_twice(SOURCES, 40, random.Random(0))]
    assert texts == [*passages_twice(SOURCES, 40, random.Random(0))] and len({*texts}) > 20
    far = max(map(len, passages_twice(SOURCES, 40, random.Random(0), 4000)))
    assert max(map(len, texts)) < 2 * DISTANCE + 4 < far < 2 * 4000 + 4
    for text in texts:
        first, second = text.removesuffix("\n").split("\n\n")
        assert first == second and any(first in document for source in SOURCES for document in source)


def test_what_comes_again_was_listed_before():
    for text in numbers_again(SOURCES, TOPICS, 40, random.Random(0)):
        parts = text.removesuffix("\n").split("\n\n")
        listed, again = parts[0].split("\n"), parts[-1].split("\n")
        assert 3 <= len(listed) <= MOST_LISTED and {*again} <= {*listed} and len(again) == min(len(listed), 8)
        assert all(re.search(r"topic \d+", line) and re.search(r"\d", line) for line in listed)
