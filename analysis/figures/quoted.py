"""Text in quotation marks, on one line."""

import re

_JOINERS = {"c": "\N{ZERO WIDTH NON-JOINER}", "d": "\N{ZERO WIDTH JOINER}"}


def quoted(text: str) -> str:
    """Quote a text like `repr`, but keep the characters that join others, as in the emoji of a family or in Persian."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\u200([cd])", lambda found: found[1] + _JOINERS[found[2]], repr(text))
