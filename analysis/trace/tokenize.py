"""From text to token ids and their places in the text, or to a message that says why the text cannot be used."""

from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from subllm import PromptError, PromptTooLongError

from .parts import Prompt

_CHARACTERS = 1024, 128  # allowed in a text: a constant, and more for each allowed token


def read_prompt(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    *,
    chat: bool = False,
    system: str = "",
    truncate: bool = False,
) -> Prompt:
    """Tokenise a prompt.

    Args:
        text: any text; right-to-left scripts, emoji and NUL characters are allowed.
        tokenizer: a fast tokenizer, which knows the places of tokens in the text.
        limit: largest number of tokens allowed.
        chat: put the text into the tokenizer's chat template, as the user's turn.
        system: system message of the chat.
        truncate: cut a longer prompt to its first `limit` tokens.

    Raises:
        PromptError: if the text is empty, white space only, not encodable, or not accepted by the chat template.
        PromptTooLongError: if it has more tokens than the limit and is not to be cut.
    """
    if not text:
        raise PromptError("The prompt is empty; type some text.")
    if not text.strip():
        raise PromptError(
            "The prompt is white space only ({characters} characters); type some text.", characters=len(text)
        )
    if len(text) > _most_characters(limit):
        if not truncate:
            raise PromptTooLongError(0, limit, len(text))
        text = text[: _most_characters(limit)]
    _check_text(text, "prompt")
    _check_text(system, "system message", limit)
    if not tokenizer.is_fast:
        raise PromptError(
            "The checkpoint's tokenizer ({kind}) does not report the positions of tokens in the text; save it as a "
            "fast tokenizer (tokenizer.json).",
            kind=type(tokenizer).__name__,
        )
    if chat:
        if not tokenizer.chat_template:
            raise PromptError("The checkpoint's tokenizer has no chat template; turn the chat option off.")
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of the checkpoint's and can raise anything
            raise PromptError(
                "The checkpoint's chat template cannot take this prompt ({kind}: {error}); turn the chat option off.",
                kind=type(error).__name__,
                error=error,
            ) from error
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not chat, verbose=False)
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    if len(ids) > limit:
        if not truncate:
            raise PromptTooLongError(len(ids), limit)
        ids, offsets = ids[:limit], offsets[:limit]
        text = text[: int(offsets[:, 1].max(initial=0))]
    if not len(ids):
        raise PromptError("The tokenizer turns this prompt into no tokens at all; type some other text.")
    return Prompt(text, ids, offsets[:, 0], offsets[:, 1], _pieces(text, ids, offsets, tokenizer))


def read_answer(text: str, tokenizer: PreTrainedTokenizerBase, room: int) -> list[int]:
    """Token ids of a text that may follow a prompt; none for an empty text.

    Args:
        text: the answer.
        tokenizer: the model's tokenizer.
        room: number of tokens that fit after the prompt.

    Raises:
        PromptError: if the text is not encodable, or longer.
    """
    if not text:
        return []
    _check_text(text, "answer", room)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) > room:
        raise PromptError(
            "The answer has {tokens:,} tokens; {room:,} fit after the prompt. Shorten one of them.",
            tokens=len(ids),
            room=room,
        )
    return ids


def _most_characters(tokens: int) -> int:
    """Length up to which a text can have this many tokens; a longer text is not even tokenised."""
    return _CHARACTERS[0] + _CHARACTERS[1] * tokens


def _check_text(text: str, what: str, limit: int | None = None) -> None:
    """Check that a text can be encoded, and is not longer than the limit of tokens can be."""
    if limit is not None and len(text) > _most_characters(limit):
        raise PromptError(
            "The {what} has {characters:,} characters; {limit:,} tokens fit here. Shorten it.",
            what=what,
            characters=len(text),
            limit=limit,
        )
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise PromptError(
                "The {what} has half of a surrogate pair (U+{code:04X}) at character {place}, which cannot be "
                "encoded; delete it or paste the text again.",
                what=what,
                code=ord(character),
                place=index + 1,
            )


def decode_pieces(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Readable text of single tokens.

    Args:
        ids: (N,) token ids.
        tokenizer: the model's tokenizer.

    Returns:
        (N,) texts; a token that is part of a character shows its bytes as the tokenizer spells them.
    """
    pieces = []
    for token in ids.tolist():
        piece = str(tokenizer.decode([token]))
        pieces.append(str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in piece or not piece else piece)
    return _array(pieces)


def _array(pieces: list[str]) -> np.ndarray:
    """Texts as an array. NumPy would strip trailing NUL characters, so they become the symbol "␀"."""
    return np.asarray([piece.replace("\0", "␀") for piece in pieces], dtype=np.str_)


def _pieces(text: str, ids: np.ndarray, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Text of each token; several tokens of one character are numbered: "🦙 2/3"."""
    pieces = []
    ranges = [tuple(pair) for pair in offsets.tolist()]
    for (start, end), group in groupby(range(len(ids)), ranges.__getitem__):
        tokens = list(group)
        for number, index in enumerate(tokens, 1):
            if start == end:
                pieces.append(str(tokenizer.convert_ids_to_tokens(int(ids[index]))))
            else:
                pieces.append(text[start:end] + (f" {number}/{len(tokens)}" if len(tokens) > 1 else ""))
    return _array(pieces)
