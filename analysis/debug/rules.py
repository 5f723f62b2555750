"""Rules: edits under a name, for any prompt, saved as a small file.

An edit as a person types it has to find its tokens in the prompt at hand. A rule is for prompts that are not written
yet: where one has no digits, there are none to keep, and an edit of tokens 0 to 3 means those that there are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from subllm.checkpoints.load import Checkpoint
from subllm.errors import shortened

from ..errors import AnalysisError
from ..trace.parts import Prompt
from ..trace.tokenize import prompt_of_ids
from .edit_override import EditOverride, kinds_of
from .edits import MOST_EDITS, Edit, EditKind, LevelKind, check, read_edits
from .named_tokens import find_tokens, is_numbers, ranges

FORMAT = 1
MOST_BYTES = 1 << 16  # of a file
LONGEST_NAME, LONGEST_DESCRIPTION = 60, 300  # characters
_FIELDS = ("format", "name", "description", "edits")


@dataclass(frozen=True)
class Rule:
    """Edits under a name.

    Attributes:
        name: shown wherever the rule is in force; "" for edits that nobody named, which are no rule to offer.
        description: a sentence about what it does; may be empty.
        edits: made in this order.

    Raises:
        AnalysisError: if name or description cannot be shown, there are no edits or too many, or one leaves nothing.
    """

    name: str
    description: str
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        for what, text, least, most in (
            ("name", self.name, 1 if self.name else 0, LONGEST_NAME),
            ("description", self.description, 0, LONGEST_DESCRIPTION),
        ):
            if not (text.isprintable() and least <= len(text.strip()) and len(text) <= most):
                raise AnalysisError(
                    "The {what} of a rule is {text!r}; it must be one line of {least} to {most} characters.",
                    what=what,
                    text=shortened(text),
                    least=least,
                    most=most,
                )
        if not 1 <= len(self.edits) <= MOST_EDITS:
            raise AnalysisError(
                "The rule {name!r} has {edits:,} edits; a rule has 1 to {most}.",
                name=self.name,
                edits=len(self.edits),
                most=MOST_EDITS,
            )
        for edit in self.edits if self.name else ():  # a rule is for prompts of which something is left
            if edit.kind is EditKind.RETENTION and not edit.value:
                raise AnalysisError(
                    "The edit '{edit}' of the rule {name!r} leaves nothing. Give a share above 0, up to 1.",
                    edit=str(edit),
                    name=self.name,
                )

    def on(self, prompt: Prompt, levels: Sequence[LevelKind]) -> tuple[Edit, ...]:
        """The edits that the rule comes to on a prompt; those that name none of its tokens are left out.

        Args:
            prompt: any prompt.
            levels: (S,) kind of each level.

        Raises:
            AnalysisError: if an edit does not fit the model.
        """
        edits = []
        for edit in self.edits:
            if not edit.kind.names_tokens:
                edits.append(edit)
            elif named := [token for token in find_tokens(edit.tokens, prompt) if token < len(prompt)]:
                edits.append(replace(edit, tokens=ranges(named)) if is_numbers(edit.tokens) else edit)
        try:
            check(edits, levels, prompt)
        except AnalysisError as error:
            if not self.name:
                raise
            raise AnalysisError(
                "The rule {name!r} does not fit this model. {why}", name=self.name, why=error
            ) from error
        return tuple(edits)

    def override(self, checkpoint: Checkpoint, ids: Tensor) -> EditOverride:
        """The rule as an override, for a batch of prompts that are known by their ids.

        Args:
            checkpoint: that reads them.
            ids: (B, T) token ids.

        Raises:
            AnalysisError: see `on`.
        """
        prompts = [prompt_of_ids(row, checkpoint.tokenizer) for row in ids.cpu().numpy()]
        levels = kinds_of(checkpoint.model)
        for prompt in prompts:
            self.on(prompt, levels)
        return EditOverride(self.edits, prompts)

    def written(self) -> bytes:
        """The rule as a file, which `read` reads."""
        content = {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "edits": [str(edit) for edit in self.edits],
        }
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, content: bytes) -> "Rule":
        """Read the bytes of a file.

        Raises:
            AnalysisError: if they are no rule; says what is wrong.
        """
        if len(content) > MOST_BYTES:
            raise AnalysisError(
                "The file has {size:,} bytes, and a rule at most {most:,}. Choose the file of a rule.",
                size=len(content),
                most=MOST_BYTES,
            )
        entries = _entries(content)
        if repr(entries.get("format")) != repr(FORMAT):  # True and 1.0 would be equal
            raise AnalysisError(
                "The rule has the format {found}; this version reads {format}. Save it again with this version.",
                found=shortened(repr(entries.get("format"))),
                format=FORMAT,
            )
        unknown, missing = sorted(set(entries) - set(_FIELDS)), [name for name in _FIELDS if name not in entries]
        if unknown or missing:
            raise AnalysisError(
                "The rule has the fields {found!r}; it must have {fields}, and no others.",
                found=shortened(", ".join(entries)),
                fields=", ".join(_FIELDS),
            )
        texts = entries["edits"]
        if not (
            isinstance(texts, list)
            and all(isinstance(text, str) for text in (entries["name"], entries["description"], *texts))
        ):
            raise AnalysisError("The name and the description of a rule must be texts, and its edits a list of texts.")
        _check_surrogates(texts)
        if not entries["name"]:
            raise AnalysisError("The rule has no name. Give it one of 1 to {most} characters.", most=LONGEST_NAME)
        return cls(entries["name"], entries["description"], tuple(read_edits(texts)))


def load_rule(path: Path) -> Rule:
    """Read the file of a rule.

    Raises:
        AnalysisError: if it cannot be read, or is no rule; says what is wrong.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise AnalysisError(
            "The rule {path} cannot be read ({error}).", path=str(path), error=error.strerror or type(error).__name__
        ) from error
    return Rule.read(content)


def _entries(content: bytes) -> dict[str, Any]:
    """The JSON object in a file, in which every name stands once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands there twice")
        return dict(pairs)

    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise AnalysisError(
            "The file is not JSON ({error}). A rule is a small JSON file, as this app saves it.",
            error=shortened(str(error)),
        ) from error
    if not isinstance(found, dict):
        raise AnalysisError("The file holds no JSON object. A rule is a small JSON file, as this app saves it.")
    return found


def _check_surrogates(texts: list[str]) -> None:
    """JSON can spell half of a surrogate pair, which no file, link or terminal takes."""
    for number, text in enumerate(texts, start=1):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise AnalysisError(
                "Edit {number} of the rule has half of a surrogate pair, which cannot be encoded; write it again.",
                number=number,
            )
