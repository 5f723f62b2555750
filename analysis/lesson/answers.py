"""A learner's answers, as rows of the CSV file that the browser makes of them, and such files joined into one."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import AnalysisError
from ..trace.spreadsheet import cell

COLUMNS = ("learner", "lesson", "question", "answer", "right", "expected", "checkpoint", "run", "prompt", "language")
"""Of the file; the browser puts the learner's name in, which is sent nowhere."""
MOST_BYTES = 1 << 20  # of a learner's file


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        question: key of the stop or of the closing question.
        answer: what was answered, in words; "" if the learner asked to be shown the answer.
        right: whether it was right.
        expected: what would have been right, in words.
        checkpoint: name of the checkpoint that the run was made with.
        run: `Trace.run` of the run.
        prompt: beginning of the prompt.
        language: of the words.
    """

    question: str
    answer: str
    right: bool
    expected: str
    checkpoint: str
    run: str
    prompt: str
    language: str

    def row(self, lesson: str) -> list[str]:
        """Cells of the file, without the learner's name.

        Args:
            lesson: title of the lesson.
        """
        right = "yes" if self.right else "no"
        return [
            lesson, self.question, self.answer, right, self.expected, self.checkpoint, self.run, self.prompt,
            self.language,
        ]  # fmt: skip


def joined(files: Iterable[tuple[str, bytes]]) -> Iterator[list[str]]:
    """Rows of several learners' files, one after another, with the name of the file; the first row has the titles.

    Args:
        files: name and content of each.

    Raises:
        AnalysisError: if one is not such a file.
    """
    yield ["file", *COLUMNS]
    for name, content in files:
        rows = _rows(name, content)
        if tuple(rows[0] if rows else ()) != COLUMNS:
            raise AnalysisError(
                "{name} is no file of answers: its first line must be {columns}.",
                name=repr(name), columns=",".join(COLUMNS),
            )  # fmt: skip
        for number, row in enumerate(rows[1:], 2):
            if len(row) != len(COLUMNS):
                raise AnalysisError(
                    "Line {number} of {name} has {found} cells; it must have {expected}.",
                    number=number, name=repr(name), found=len(row), expected=len(COLUMNS),
                )  # fmt: skip
            yield [cell(text) for text in (name, *row)]


def _rows(name: str, content: bytes) -> list[list[str]]:
    if len(content) > MOST_BYTES:
        raise AnalysisError(
            "{name} has {n} bytes; a file of answers has at most {most}.",
            name=repr(name),
            n=len(content),
            most=MOST_BYTES,
        )
    try:
        return list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnalysisError("{name} cannot be read as CSV in UTF-8.", name=repr(name)) from error
