"""Prompt and answer as one run: what a model wrote, read back in one pass, so that it can be explained and edited.

By the model's promise the routing of the answer is that of the generation, except where an edit reaches a retention,
which is then reached on prompt and answer together.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import AnalysisError
from ..trace.parts import Prompt
from ..trace.tokenize import joined, read_again
from .edits import Edit
from .named_tokens import find_tokens, last_ones, ranges


class Answered(NamedTuple):
    """A prompt with its answer.

    Attributes:
        prompt: both, as one prompt; the tokens are those that were read and written.
        again: whether the tokenizer makes the same tokens of the text, so that the text alone stands for the run.
    """

    prompt: Prompt
    again: bool


def with_answer(prompt: Prompt, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Answered:
    """A prompt with its answer.

    Args:
        prompt: what was read.
        ids: (N,) ids of the answer.
        tokenizer: the model's tokenizer.

    Raises:
        AnalysisError: if there is no answer.
    """
    if not len(ids):
        raise AnalysisError("There is no answer to this prompt; generate some tokens first.")
    whole = np.array([*prompt.token_ids.tolist(), *ids], dtype=np.int64)
    before, after = (
        str(tokenizer.decode(each, clean_up_tokenization_spaces=False)) for each in (prompt.token_ids, whole)
    )
    read = read_again(prompt.text + after[len(before) :], whole, tokenizer)
    if read is not None:
        return Answered(read, True)
    answer, first = joined(whole[len(prompt) :], tokenizer), len(prompt.text)
    return Answered(
        Prompt(
            prompt.text + answer.text,
            whole,
            np.concatenate([prompt.starts, answer.starts + first]),
            np.concatenate([prompt.ends, answer.ends + first]),
            np.concatenate([prompt.pieces, answer.pieces]),
        ),
        False,
    )


def edits_with_answer(edits: Sequence[Edit], prompt: Prompt, length: int) -> list[Edit]:
    """Edits of a prompt as they apply to it and its answer: classes and texts name tokens of the prompt alone.

    Args:
        edits: edits of the prompt.
        prompt: the prompt.
        length: number of tokens of prompt and answer; "last 3" names all from the third to last of the prompt on.
    """
    found = []
    for edit in edits:
        if not edit.kind.names_tokens:
            found.append(edit)
            continue
        named = [token for token in find_tokens(edit.tokens, prompt) if token < len(prompt)]
        if last_ones(edit.tokens) is not None:
            named += range(len(prompt), length)
        if named:
            found.append(replace(edit, tokens=ranges(named)))
    return found
