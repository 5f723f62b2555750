"""A chat as a text that a person can write, and prompts in files.

A line that says only `system:`, `user:` or `assistant:` begins a turn. A text without such a line is one turn of the
user; so is what stands before the first one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from subllm.errors import PromptError, shortened

from .chat_turns import ROLES

MOST_BYTES = 1 << 20  # of a file
_MARK = re.compile(rf"^({'|'.join(ROLES)}):[ \t\r]*$", re.MULTILINE)


def written_turns(text: str) -> list[dict[str, str]]:
    r"""The messages of a chat, as chat templates take them.

    Raises:
        PromptError: if a turn is empty, or the last one is not the user's, so that there is nothing to answer.

    >>> written_turns("Which gate?\nassistant:\nGate 4.\nuser:\nWhen?")[1]
    {'role': 'assistant', 'content': 'Gate 4.'}
    """
    before, *parts = _MARK.split(text)
    turns = [{"role": "user", "content": before.strip("\r\n")}] if before.strip() else []
    turns += [
        {"role": role, "content": content.strip("\r\n")} for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not parts:
        return [{"role": "user", "content": text}]
    for number, turn in enumerate(turns, start=1):
        if not turn["content"].strip():
            raise PromptError(
                "Turn {number} of the chat, {role}, is empty; write something below the line, or delete it.",
                number=number,
                role=turn["role"],
            )
    if turns[-1]["role"] != "user":
        raise PromptError(
            "The chat ends with a turn of {role}; the model answers a turn of user. Add a line user: and what it says.",
            role=turns[-1]["role"],
        )
    return turns


def text_of_turns(turns: Sequence[Mapping[str, str]]) -> str:
    """The text that `written_turns` reads as these messages.

    Raises:
        PromptError: if a message contains a line that would begin another turn.
    """
    for turn in turns:
        found = _MARK.search(turn["content"])
        if found:
            raise PromptError(
                "A message contains a line that says only {line!r}, which begins a turn here; change that line.",
                line=found[0].strip(),
            )
    return "\n\n".join(f"{turn['role']}:\n{turn['content']}" for turn in turns)


def with_turn(text: str) -> str:
    """A text with two more turns to fill in, the assistant's and the user's."""
    first = text.strip("\n") if _MARK.search(text) else f"user:\n{text.strip()}"
    return f"{first}\n\nassistant:\n\n\nuser:\n"


class FilePrompt(NamedTuple):
    """A prompt that was read from a file.

    Attributes:
        text: of the prompt.
        chat: whether it is a chat.
    """

    text: str
    chat: bool


def prompt_in_file(name: str, content: bytes) -> FilePrompt:
    """Read a prompt from the bytes of a file.

    A file whose name ends in .json holds the messages of a chat, as APIs of language models take them: a list of
    objects with `role` and `content`, or an object with such a list as `messages`. Content is text, or a list of parts
    of the type "text". Any other file holds text.

    Raises:
        PromptError: if it is too large, empty, not UTF-8, or holds no such messages.
    """
    if len(content) > MOST_BYTES:
        raise PromptError(
            "The file has {size:,} bytes, and a prompt at most {most:,}. Choose a shorter one.",
            size=len(content),
            most=MOST_BYTES,
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            "The file is not UTF-8 text ({error}). Save it as plain text in UTF-8.", error=error.reason
        ) from error
    if not text.strip():
        raise PromptError("The file holds no text. Choose one that holds a prompt.")
    if not name.lower().endswith(".json"):
        return FilePrompt(text, False)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(
            "The file is not JSON ({error}). A chat is a list of messages with role and content; save text as .txt.",
            error=shortened(str(error)),
        ) from error
    return FilePrompt(text_of_turns(_messages(found)), True)


def _messages(found: Any) -> list[dict[str, str]]:
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list) or not messages:
        raise PromptError(
            "The file holds no messages. A chat is a list of messages with role and content, or an object with such a "
            "list as messages."
        )
    turns = []
    for number, message in enumerate(messages, start=1):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if role not in ROLES:
            raise PromptError(
                "Message {number} of the file has the role {role}; it must have a role, one of {roles}, and content, "
                "which is text.",
                number=number,
                role=shortened(repr(role)),
                roles=", ".join(ROLES),
            )
        text = content if isinstance(content, str) else _joined(content)
        if text is None:
            raise PromptError(
                "Message {number} of the file has the content {content}; it must be text, or a list of parts of the "
                "type text.",
                number=number,
                content=shortened(repr(content)),
            )
        turns.append({"role": role, "content": text})
    return turns


def _joined(content: Any) -> str | None:
    """The texts of a list of parts, as APIs take them; None if it is no such list."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found and len(found) == len(parts) else None
