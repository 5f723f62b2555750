"""The tokenizer of a checkpoint, and its chat template: loaded without code of the checkpoint, and tried before use."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from ..errors import CheckpointError
from .confined import ConfinedError, render, try_tokenizer
from .files import check_folder, is_of_library, place_of, printable, refusing

_FAST = "tokenizer.json"
_FILES = (_FAST, "vocab.json")
_SENTENCEPIECE = "tokenizer.model"
_TRIED = ("The cat sat on 12,345 mats.\n", " " * 4000 + "x", "a" * 4000 + "!", "9" * 4000, "你好, 🦙! \t\0é" * 300)
_doubtful: WeakSet[PreTrainedTokenizerBase] = WeakSet()  # tokenizers that may need very long for some texts


def load_tokenizer(folder: Path, config: LlamaConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: of the checkpoint.
        config: configuration of the model, which must have an embedding for every token.

    Raises:
        CheckpointError: if there is none, it cannot be read, or it has tokens that the model has no embeddings for.
    """
    check_folder(folder)
    if not any((folder / name).is_file() for name in _FILES):
        if (folder / _SENTENCEPIECE).is_file():
            raise CheckpointError(
                "{folder} has its tokenizer only as {file}, which is not read here. Where sentencepiece and protobuf "
                "are installed, transformers saves it as {fast}: "
                "AutoTokenizer.from_pretrained('FOLDER').save_pretrained('FOLDER')",
                folder=place_of(folder),
                file=_SENTENCEPIECE,
                fast=_FAST,
            )
        raise CheckpointError(
            "{folder} has no tokenizer ({files}); copy the tokenizer files of the model that the "
            "checkpoint was made from into it.",
            folder=place_of(folder),
            files=", ".join(_FILES),
        )
    known = False
    with refusing(folder, "its tokenizer"):
        if (folder / _FAST).is_file():
            status = os.stat(folder / _FAST)
            known = _try(folder / _FAST, status.st_size, status.st_mtime_ns)
        # the model's configuration is given, so that transformers does not read it once more in its own way
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
        if tokenizer.is_fast:
            tokenizer.decode(tokenizer(_TRIED[0], return_offsets_mapping=True)["input_ids"])
    check_vocabulary(folder, tokenizer, config.vocab_size)
    if not known:
        _doubtful.add(tokenizer)
    return tokenizer


@lru_cache(maxsize=64)
def _try(path: Path, *_: int) -> bool:
    return try_tokenizer(list(_TRIED), path=path)


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, words: int) -> None:
    """Check that the model has an embedding for every token of the tokenizer.

    Tokens that were added to a tokenizer later may lie beyond the embeddings, as padding often does; a prompt that
    has one of them is refused when it is read.

    Args:
        folder: of the checkpoint, for the message.
        tokenizer: of the checkpoint.
        words: number of the model's embeddings.

    Raises:
        CheckpointError: if there are fewer.
    """
    if tokenizer.vocab_size > words:
        raise CheckpointError(
            "The tokenizer in {place} has {tokens:,} tokens, and the model has embeddings for {words:,}. Copy the "
            "tokenizer files of the model that the checkpoint was made from into it.",
            place=place_of(folder),
            tokens=tokenizer.vocab_size,
            words=words,
        )


def encode(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
    """Tokenise a text; in another process first, if the tokenizer is not certain to read any text in time.

    Args:
        tokenizer: of a checkpoint.
        text: to be tokenised.
        **options: as the tokenizer takes them.

    Raises:
        ConfinedError: if it fails, or takes more time or memory than tokenizers do.
    """
    if tokenizer in _doubtful and tokenizer.is_fast:
        try_tokenizer([text], content=tokenizer.backend_tokenizer.to_str())
    try:
        return tokenizer(text, verbose=False, **options)
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise ConfinedError(f"{type(error).__name__}: {printable(str(error))}") from error


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], characters: int) -> str:
    """The text of a chat, with the beginning of the model's answer.

    Args:
        tokenizer: with a chat template.
        turns: messages, each with a role and a content.
        characters: most that the text may have.

    Raises:
        ConfinedError: if the template fails, or takes more time, memory or characters than allowed.
    """
    special: dict[str, Any] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    values = special | {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfinedError(str(error)) from error
    return render(template, values, characters)
