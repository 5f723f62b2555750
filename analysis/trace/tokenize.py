"""From text to token ids and their places in the text, or to a message that says why the text cannot be used."""

import re
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from subllm import PromptError, PromptTooLongError
from subllm.checkpoints.confined import ConfinedError
from subllm.checkpoints.tokenizer import apply_chat_template, encode

from .chat_text import written_turns
from .parts import Prompt

_CHARACTERS = 1024, 128  # allowed in a text: a constant, and more for each allowed token
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}  # which byte a letter stands for
_INCOMPLETE = re.compile("[\udc80-\udcff]+")  # bytes that are no whole character: each becomes 0xDC00 and itself
_MARK = "▁"  # which SentencePiece writes for a space


def read_prompt(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    *,
    chat: bool = False,
    system: str = "",
    truncate: bool = False,
    special_tokens: bool = True,
) -> Prompt:
    """Tokenise a prompt.

    Args:
        text: any text; right-to-left scripts, emoji and NUL characters are allowed.
        tokenizer: a fast tokenizer, which knows the places of tokens in the text.
        limit: largest number of tokens allowed.
        chat: put the text into the tokenizer's chat template, as `analysis.trace.chat_text` reads its turns.
        system: system message of a chat whose text has none.
        truncate: cut a longer prompt to its first `limit` tokens.
        special_tokens: add those that the tokenizer begins or ends a text with; a chat has those of its template alone.

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
        turns = written_turns(text)
        if system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
        try:
            text = apply_chat_template(tokenizer, turns, _most_characters(limit) + len(text) + len(system))
        except ConfinedError as error:
            raise PromptError(
                "The checkpoint's chat template cannot take this prompt ({error}). Turn the chat option off, or ask "
                "whoever made the checkpoint.",
                error=str(error),
            ) from error
    encoding = _encode(text, tokenizer, return_offsets_mapping=True, add_special_tokens=special_tokens and not chat)
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


def read_again(text: str, ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Prompt | None:
    """The prompt of a text if the tokenizer makes the tokens (T,) of it, so that the text alone stands for them."""
    try:
        read = read_prompt(text, tokenizer, len(ids))
    except PromptError:  # such as one of more tokens
        return None
    return read if np.array_equal(read.token_ids, ids) else None


def prompt_of_ids(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """A prompt that is known by its token ids (T,) alone, as a page reads its text, so that edits name the same tokens.

    Where the tokenizer makes other tokens of the text, as it does of one that begins within a word, it is as `joined`.
    """
    for part in (ids, ids[1:]):  # many tokenizers put a special token before a text
        read = read_again(str(tokenizer.decode(part, clean_up_tokenization_spaces=False)), ids, tokenizer)
        if read is not None:
            return read
    return joined(ids, tokenizer)


def joined(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """A prompt whose text is that of the tokens (T,), one after another.

    Several tokens of one character all stand at its place. A byte that is no whole character is U+FFFD in the text.
    """
    parts = _written(ids, tokenizer)
    text = b"".join(parts).decode("utf-8", "surrogateescape")
    sizes = np.array([len(character.encode("utf-8", "surrogateescape")) for character in text])  # in bytes
    behind, ends = np.cumsum(sizes), np.cumsum([len(part) for part in parts])  # of characters, and of tokens
    starts = np.concatenate([[0], ends[:-1]])
    return Prompt(
        _INCOMPLETE.sub(lambda found: "\ufffd" * len(found[0]), text),
        ids,
        np.searchsorted(behind, starts, side="right"),
        np.searchsorted(behind - sizes, ends),
        _array([_readable(part) for part in parts]),
    )


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
    ids: list[int] = _encode(text, tokenizer, add_special_tokens=False)["input_ids"]
    if len(ids) > room:
        raise PromptError(
            "Tokens of the answer: {tokens:,}; {room:,} fit after the prompt. Shorten one of them.",
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


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, **options: bool) -> Any:
    try:
        return encode(tokenizer, text, **options)
    except ConfinedError as error:
        raise PromptError(
            "The checkpoint's tokenizer cannot read this text ({error}). Type some other text, or choose another "
            "checkpoint.",
            error=str(error),
        ) from error


def decode_pieces(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Readable text of single tokens.

    Args:
        ids: (N,) token ids.
        tokenizer: the model's tokenizer.

    Returns:
        (N,) texts, with the space that a token begins with. A token that is part of a character shows its bytes, such
        as "⟨F0 9F⟩", a special token its name, and an id that the tokenizer does not have "⟨id 7⟩".
    """
    return _array([_readable(part) for part in _written(ids, tokenizer)])


def _written(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """(N,) bytes that each token adds to a text, which may end within a character; its name if it adds nothing else."""
    special, found = set(tokenizer.all_special_ids), {}
    for token in dict.fromkeys(ids.tolist()):
        name = _spelled(token, tokenizer)
        piece = name if token in special else _in_a_text(token, tokenizer)
        found[token] = piece.encode() if piece and "\ufffd" not in piece else _spelled_bytes(name)
    return [found[token] for token in ids.tolist()]


def _in_a_text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a token adds to a text: at its beginning, many tokenizers leave out the space of a token."""
    first, both = (
        str(tokenizer.decode([token] * times, clean_up_tokenization_spaces=False)) for times in (1, 2)
    )  # the second one of two equal tokens stands inside of a text
    return both[len(first) :]


def _spelled_bytes(name: str) -> bytes:
    """The bytes of a token that is part of a character.

    Args:
        name: as the vocabulary has it: "<0xF0>" by SentencePiece, or a letter for every byte by GPT-2's tokenizers.
    """
    if single := _BYTE.fullmatch(name):
        return bytes([int(single[1], 16)])
    return bytes(_LETTERS[letter] for letter in name) if all(letter in _LETTERS for letter in name) else name.encode()


def _readable(written: bytes) -> str:
    """What a token adds to a text; bytes that are no whole character are spelled out."""
    text = written.decode("utf-8", "surrogateescape")
    return _INCOMPLETE.sub(lambda found: f"⟨{' '.join(f'{ord(each) - 0xDC00:02X}' for each in found[0])}⟩", text)


def _spelled(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token as the tokenizer's vocabulary has it."""
    name = tokenizer.convert_ids_to_tokens(token)
    return f"⟨id {token}⟩" if name is None else str(name)


def _array(pieces: list[str]) -> np.ndarray:
    """Texts as an array. NumPy would strip trailing NUL characters, so they become the symbol "␀"."""
    return np.asarray([piece.replace("\0", "␀") for piece in pieces], dtype=np.str_)


def _pieces(text: str, ids: np.ndarray, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Text of each token; several tokens of one character are numbered: "🦙 2/3".

    A mark of a word's beginning that the tokenizer added to the text is shown as it is spelled: it stands for no
    character, although the first one's place is given for it.
    """
    spelled = [_spelled(token, tokenizer) for token in ids.tolist()]
    covered = [text[start:end] for start, end in offsets.tolist()]
    added = [not name.strip(_MARK) and bool(piece.strip()) for name, piece in zip(spelled, covered, strict=True)]
    places = [(*pair, mark) for pair, mark in zip(offsets.tolist(), added, strict=True)]
    pieces = []
    for (start, end, mark), group in groupby(range(len(ids)), places.__getitem__):
        tokens = list(group)
        for number, index in enumerate(tokens, 1):
            if start == end or mark:
                pieces.append(spelled[index])
            else:
                pieces.append(covered[index] + (f" {number}/{len(tokens)}" if len(tokens) > 1 else ""))
    return _array(pieces)
