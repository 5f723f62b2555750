"""Ten everyday questions, answered greedily by a checkpoint and by its dense model: what repeats itself?"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, PreTrainedModel

from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint

from ..guard import ids_on_device
from ..trace.tokenize import read_prompt

QUESTIONS = (
    "What is the capital of France?",
    "Why do leaves change colour in autumn?",
    "How do I boil an egg?",
    "Explain gravity to a child.",
    "Write a short thank-you note to a neighbour.",
    "What should I pack for a weekend at the sea?",
    "Give me three tips for sleeping better.",
    "What is the difference between a frog and a toad?",
    "Tell me a short story about a lost key.",
    "How many days are in a week, and what are their names?",
)
NEW_TOKENS = 60
REPEATED = 8  # n of the repeated n-grams that are counted


@dataclass(frozen=True)
class Answer:
    """What two models answer.

    Attributes:
        question: of a user.
        text: answer of the checkpoint.
        repeats: number of repeated 8-grams in it, see `repeats`.
        dense_text: answer of the dense model.
        dense_repeats: the same of that.
    """

    question: str
    text: str
    repeats: int
    dense_text: str
    dense_repeats: int


def answer_questions(checkpoint: Checkpoint, dense: DenseModel) -> Iterator[Answer]:
    """Ask all `QUESTIONS`, each in a chat of its own, for at most `NEW_TOKENS` tokens.

    Args:
        checkpoint: with a chat template.
        dense: that answers beside it, and ends as the checkpoint does.

    Raises:
        PromptError: if there is no chat template, or it does not take a question.
    """
    tokenizer, most = checkpoint.tokenizer, checkpoint.model.config.max_position_embeddings
    own = checkpoint.model.generation_config
    greedy = GenerationConfig(  # what is None would be taken from the models' own settings
        max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id,
    )  # fmt: skip
    for question in QUESTIONS:
        prompt = ids_on_device(checkpoint.model, read_prompt(question, tokenizer, most, chat=True).token_ids)
        ids, dense_ids = _written(checkpoint.model, prompt, greedy), _written(dense.model, prompt, greedy)
        text, dense_text = tokenizer.batch_decode([ids, dense_ids], skip_special_tokens=True)
        yield Answer(question, text.strip(), repeats(ids), dense_text.strip(), repeats(dense_ids))


def repeats(ids: list[int]) -> int:
    """Number of runs of `REPEATED` tokens that occurred before: repeated 8-grams."""
    runs = [tuple(ids[start : start + REPEATED]) for start in range(len(ids) - REPEATED + 1)]
    return len(runs) - len(set(runs))


def _written(model: PreTrainedModel, prompt: torch.Tensor, settings: GenerationConfig) -> list[int]:
    ids = model.generate(  # type: ignore[operator]
        prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
    )
    return list(ids[0, prompt.shape[1] :].tolist())
