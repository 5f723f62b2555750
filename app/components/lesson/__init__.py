"""What a lesson shows in the browser beside Streamlit's own elements: its text, and the learner's answers as a file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import streamlit as st

from analysis.figures.modules import join
from analysis.lesson.content import Piece

_FOLDER = Path(__file__).parent
_TEXT, _ANSWERS = (join(_FOLDER / f"{name}.js") for name in ("text", "answers"))
_CSS = (_FOLDER / "view.css").read_text(encoding="utf-8")


def lesson_text(paragraphs: Sequence[tuple[str, Iterable[Piece]]], key: str) -> None:
    """Show paragraphs whose terms light up in the text and the map of the prompt when they are pointed at.

    Args:
        paragraphs: the look of each, "idea", "do", "question", "reveal" or "mistake", and its pieces.
        key: key of the element.
    """
    data = [
        {"look": look, "pieces": [{"text": piece.text, "term": piece.term} for piece in pieces]}
        for look, pieces in paragraphs
    ]
    component = st.components.v2.component("subllm_lesson_text", css=_CSS, js=_TEXT)
    component(data=data, key=key, height="content")


def answers_file(rows: Sequence[Sequence[str]], columns: Sequence[str], words: Mapping[str, str], key: str) -> None:
    """Offer the answers as a CSV file, which the browser makes: the learner's name is sent nowhere.

    Args:
        rows: cells of each answer, without the learner's name.
        columns: titles; the first one is that of the name.
        words: labels "name", "download" and "file", the last one for the name of the file.
        key: key of the element.
    """
    data = {"columns": [*columns], "rows": [[*row] for row in rows], "words": {**words}}
    component = st.components.v2.component("subllm_lesson_answers", css=_CSS, js=_ANSWERS)
    component(data=data, key=key, height="content")
