"""Chats and stories that a model writes in its own template: text for conversion that no corpus holds."""

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic import append_whole, drop_incomplete_line, full_disk_reported
from ..checkpoints.confined import ConfinedError
from ..checkpoints.tokenizer import apply_chat_template
from ..errors import CheckpointError, DataError

REQUESTS = (
    "What is {topic}?",
    "Explain {topic} to a child.",
    "Write a short story about {topic}.",
    "Give me three facts about {topic}.",
    "Why is {topic} important?",
    "Tell me about {topic} in a few sentences.",
    "Write a story that begins with {topic}.",
    "How would you describe {topic} to a friend?",
    "Write a poem about {topic}.",
    "What are the advantages and disadvantages of {topic}?",
    "Write a short dialogue between two people about {topic}.",
    "List the main steps to learn about {topic}.",
)

_SUBJECT = re.compile(r"(.{3,60}?),? (?:is|was|are|were) ")
_LONGEST_PROMPT = 20_000  # characters of a request in its template


def find_topics(documents: Iterable[str]) -> list[str]:
    """Topics of documents: the subject of the first sentence, if it has the form "X is" or "X was".

    Raises:
        DataError: if no document begins in this way.
    """
    matches = (_SUBJECT.match(document) for document in documents)
    topics = list(dict.fromkeys(match.group(1).strip() for match in matches if match))
    if not topics:
        raise DataError("No document begins with 'X is' or 'X was', so there is nothing to ask about; give others.")
    return topics


@torch.inference_mode()
def write_chats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    topics: list[str],
    *,
    count: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Iterator[str]:
    """Let a model answer requests about topics, sampled at temperature 0.8 from the 50 most likely tokens.

    Top-p sampling would sort the whole vocabulary for every token, which takes longer than the model.

    Args:
        model: a causal language model with a chat template.
        tokenizer: its tokenizer.
        topics: topics to ask about.
        count: number of chats.
        max_new_tokens: length of an answer, in tokens.
        batch_size: number of chats written at once.
        seed: seed of the choice of topics and of sampling.

    Raises:
        DataError: if the tokenizer has no end-of-text token.
        CheckpointError: if the template cannot take a request.

    Yields:
        One chat each, template and special tokens included.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if tokenizer.eos_token is None:
        raise DataError("The tokenizer has no end-of-text token, so a chat would have no end.")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # nothing attends to it
    for start in range(0, count, batch_size):
        requests = [
            rng.choice(REQUESTS).format(topic=rng.choice(topics)) for _ in range(min(batch_size, count - start))
        ]
        prompts = [_in_template(tokenizer, request) for request in requests]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        output = model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            pad_token_id=tokenizer.pad_token_id,
        )
        for prompt, ids in zip(prompts, output[:, inputs["input_ids"].shape[1] :], strict=True):
            answer = tokenizer.decode(ids, skip_special_tokens=True)
            yield f"{prompt}{answer}{tokenizer.eos_token}\n"


def _in_template(tokenizer: PreTrainedTokenizerBase, request: str) -> str:
    try:
        return apply_chat_template(tokenizer, [{"role": "user", "content": request}], _LONGEST_PROMPT)
    except ConfinedError as error:
        raise CheckpointError(
            f"The chat template of the model cannot take a request ({error}). Give another chat model, or ask whoever "
            "made this one."
        ) from error


def count_chats(path: Path) -> int:
    """How many whole chats are in a JSON Lines file, which need not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def append_chats(path: Path, chats: Iterator[str]) -> None:
    """Append chats to a JSON Lines file, each as soon as it is written.

    An incomplete last line, which a killed process has left, is removed first.

    Raises:
        DiskFullError: if the disk is full; the file then ends with the last chat that is whole.
    """
    with full_disk_reported(path, lambda: f"{path.name} ends with the last chat that is whole"):
        drop_incomplete_line(path)
        for chat in chats:
            append_whole(path, json.dumps({"text": chat}))
