"""Questions of the kind "why A and not B", as a person writes them, and the words for what they are about.

A prediction is contrasted with another next token: the value is log p(A) - log p(B), which is the difference of their
logits. A decision is contrasted with another token of the prompt: the value is the difference of their scores at a
level, whose threshold is the same for both.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from subllm.errors import shortened

from ..errors import AnalysisError
from ..trace.parts import Prompt, Routing
from ..trace.statistics import score_rank
from ..trace.tokenize import decode_pieces, read_answer
from .named_tokens import parse_number
from .target import Question

_MOST = 64  # tokens of a text whose first one is asked about


def question_of(
    token: int, level: int | None, tokenizer: PreTrainedTokenizerBase, answer: str = "", instead: str = ""
) -> Question:
    """The question that a person wrote.

    Args:
        token: index of a token of the prompt.
        level: level whose score of the token is explained; None explains a token that follows it.
        tokenizer: the model's tokenizer.
        answer: text whose first token is A; empty for the likeliest one, and for scores.
        instead: what A is contrasted with: a text whose first token is B or, for scores, the number of another token
            of the prompt; empty for no contrast.

    Raises:
        AnalysisError: if the number of a token cannot be read.
        PromptError: if a text cannot be encoded, or is long.
    """
    if level is None:
        return Question(token, None, _first_token(answer, tokenizer), _first_token(instead, tokenizer))
    other = parse_number(instead.strip()) if instead.strip() else None
    if instead.strip() and other is None:
        raise AnalysisError(
            "{text!r} is not the number of a token. A score is contrasted with that of another token of the prompt: "
            "write its number.",
            text=shortened(instead),
        )
    return Question(token, level, None, other)


def _first_token(text: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    ids = read_answer(text, tokenizer, _MOST)
    return ids[0] if ids else None


class Contrasted(NamedTuple):
    """Readable texts of what a question is about; empty where there is none.

    Attributes:
        this: A, the next token or the token of the prompt.
        that: B.
    """

    this: str
    that: str

    @classmethod
    def of(
        cls, question: Question, answer: int | None, prompt: Prompt, tokenizer: PreTrainedTokenizerBase
    ) -> "Contrasted":
        """Name what a question is about.

        Args:
            question: the question.
            answer: id of the next token that was explained; None for scores.
            prompt: the prompt.
            tokenizer: the model's tokenizer.
        """
        tokens = (question.token, question.instead) if answer is None else (answer, question.instead)
        known = [token for token in tokens if token is not None]
        pieces = prompt.pieces[known] if answer is None else decode_pieces(np.array(known), tokenizer)
        this, that = [*map(str, pieces), ""][:2]
        return cls(this, that)


@dataclass(frozen=True)
class Decision:
    """What a level decided about one token.

    Attributes:
        token: index of the token.
        score: its importance score.
        threshold: what the score was compared with.
        rank: rank of the score among the tokens that reached the level, from 1.
        reached: number of these tokens.
        kept: whether the level keeps it.
        edited: whether an edit named it, in which case the score did not decide.
    """

    token: int
    score: float
    threshold: float
    rank: int
    reached: int
    kept: bool
    edited: bool


def decision(routing: Routing, level: int, token: int) -> Decision:
    """What a level decided about a token that reached it, and by which score.

    Raises:
        AnalysisError: if the level's router does not score tokens.
    """
    row = level - 1
    score = float(routing.scores_of(level)[token])
    rank, reached = score_rank(routing, level, token)
    threshold = float(routing.thresholds[row])
    return Decision(
        token, score, threshold, rank, reached, bool(routing.kept[row, token]), bool(routing.edited[row, token])
    )
