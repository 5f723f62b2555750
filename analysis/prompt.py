"""From text to token ids, with where each token stands in the text; or a message of why that text cannot be read."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from subllm import PromptError, PromptTooLongError


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        text: what was tokenised, chat template included.
        token_ids: (T,) int64.
        starts: (T,) first character of each token in the text.
        ends: (T,) past its last character; equal to the start where a token stands for no text.
        pieces: (T,) readable text of each token.
    """

    text: str
    token_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray


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
        text: any text; right-to-left scripts, emoji and NUL characters are text like any other.
        tokenizer: a fast tokenizer, which knows where tokens stand in the text.
        limit: most tokens allowed.
        chat: put the text into the tokenizer's chat template, as the user's turn.
        system: the turn before it, in a chat.
        truncate: cut a longer prompt to its first `limit` tokens.

    Raises:
        PromptError: if the text is empty, white space only, or not encodable.
        PromptTooLongError: if it has more tokens than the limit and is not to be cut.
    """
    if not text:
        raise PromptError("The prompt is empty; type some text.")
    if not text.strip():
        raise PromptError(f"The prompt is white space only ({len(text)} characters); type some text.")
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise PromptError(
                f"The prompt has half of a surrogate pair (U+{ord(character):04X}) at character {index + 1}, which no "
                "encoding knows; delete it or paste the text again."
            )
    if not tokenizer.is_fast:
        raise PromptError(
            f"The checkpoint's tokenizer ({type(tokenizer).__name__}) cannot say where tokens stand in the text; save "
            "it as a fast tokenizer (tokenizer.json)."
        )
    if chat:
        if not tokenizer.chat_template:
            raise PromptError("The checkpoint's tokenizer has no chat template; turn the chat option off.")
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
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


def decode_pieces(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Readable text of single tokens.

    Args:
        ids: (N,) token ids.
        tokenizer: of the model.

    Returns:
        (N,) strings; a token that is part of a character shows its bytes as the tokenizer spells them.
    """
    pieces = []
    for token in ids.tolist():
        piece = str(tokenizer.decode([token]))
        pieces.append(str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in piece or not piece else piece)
    return _array(pieces)


def _array(pieces: list[str]) -> np.ndarray:
    """Strings as an array; numpy would lose NUL characters at the end, so they become their picture."""
    return np.asarray([piece.replace("\0", "␀") for piece in pieces], dtype=np.str_)


def _pieces(text: str, ids: np.ndarray, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Text of each token; several tokens of one character are numbered: "🦙 2/3"."""
    pieces = []
    ranges = [tuple(pair) for pair in offsets.tolist()]
    for index, (start, end) in enumerate(ranges):
        if start == end:
            pieces.append(str(tokenizer.convert_ids_to_tokens(int(ids[index]))))
            continue
        first = index
        while first and ranges[first - 1] == (start, end):
            first -= 1
        last = index
        while last + 1 < len(ranges) and ranges[last + 1] == (start, end):
            last += 1
        part = "" if first == last else f" {index - first + 1}/{last - first + 1}"
        pieces.append(text[start:end] + part)
    return _array(pieces)
