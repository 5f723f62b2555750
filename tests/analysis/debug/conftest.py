"""Prompts for tests of edits, which name tokens by text and by number."""

import numpy as np

from analysis.trace.parts import Prompt


def prompt_of(ids):
    """A prompt of two letters a token."""
    text = "".join(f"{'ab'[number % 2]}{number % 10}" for number in range(len(ids)))
    starts = np.arange(len(ids)) * 2
    pieces = np.asarray([text[start : start + 2] for start in starts], dtype=np.str_)
    return Prompt(text, np.asarray(ids, dtype=np.int64), starts, starts + 2, pieces)
