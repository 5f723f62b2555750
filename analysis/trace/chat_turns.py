"""Who says what in a chat: the turns of a prompt that went through a chat template, found by the template's marks."""

import re
from collections.abc import Iterator
from typing import NamedTuple

ROLES = ("system", "user", "assistant")
_SPELLED = {"model": "assistant"}  # as Gemma's template has it
_BEGIN = re.compile(
    r"<\|im_start\|>(?P<chatml>system|user|assistant)\n"
    r"|<\|start_header_id\|>(?P<llama>system|user|assistant)<\|end_header_id\|>\n*"
    r"|<start_of_turn>(?P<gemma>system|user|model)\n"
    r"|<\|(?P<zephyr>system|user|assistant)\|>\n"
    r"|\[INST\]\s{0,8}(?P<system><<SYS>>)\n?"  # one mark: Llama 2 puts the system's turn into the user's first
    r"|(?P<user><</SYS>>|\[INST\])\s{0,8}"
    r"|(?P<assistant>\[/INST\])[^\S\n]?"
)
_END = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|</s>")


class Turn(NamedTuple):
    """What one role says, without the marks around it.

    Attributes:
        role: one of `ROLES`.
        mark: index of the first character of the mark that begins the turn.
        start: index of its first character in the text of the prompt.
        end: index after its last character.
    """

    role: str
    mark: int
    start: int
    end: int


def turns_of(text: str) -> Iterator[Turn]:
    r"""Turns of a chat in a text, in order; none where the text has no marks of ChatML, Llama 2 and 3, Gemma or Zephyr.

    >>> text = "<|im_start|>user\nWhich gate?<|im_end|>\n<|im_start|>assistant\n"
    >>> [(turn.role, text[turn.start : turn.end]) for turn in turns_of(text)]
    [('user', 'Which gate?'), ('assistant', '')]
    """
    begin = _BEGIN.search(text)
    while begin is not None:
        following = _BEGIN.search(text, begin.end())
        last = len(text) if following is None else following.start()
        end = _END.search(text, begin.end(), last)
        group = begin.lastgroup or ""
        role = group if group in ROLES else begin[group]
        yield Turn(_SPELLED.get(role, role), begin.start(), begin.end(), last if end is None else end.start())
        begin = following
