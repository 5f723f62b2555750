"""A text with a bar for each selection rule under every token, drawn in the browser from data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from analysis.figures.modules import join
from analysis.trace.parts import Prompt

_FOLDER = Path(__file__).parent
_HTML, _CSS = ((_FOLDER / f"view.{kind}").read_text() for kind in ("html", "css"))
_JS = join(_FOLDER / "view.js")


@dataclass(frozen=True, eq=False)
class Bar:
    """The bars of one rule.

    Attributes:
        name: of the rule.
        kept: (T,) tokens of the prompt that the level keeps under it.
        reached: (T,) tokens that reach the level under it.
        merged: (T,) tokens that do not reach it because an outer level merges them into another.
    """

    name: str
    kept: np.ndarray
    reached: np.ndarray
    merged: np.ndarray


def rules_view(prompt: Prompt, bars: Sequence[Bar], tokens: range, words: dict[str, str], key: str) -> None:
    """Show which tokens each rule keeps.

    Args:
        prompt: the text.
        bars: one for each rule, from above.
        tokens: those that are shown, in order.
        words: labels "kept", "dropped", "absent" and "absentMerged".
        key: key of the element.
    """
    data = view_data(prompt, bars, tokens, words)
    st.components.v2.component("subllm_rules_view", html=_HTML, css=_CSS, js=_JS)(data=data, key=key, height="content")


def view_data(prompt: Prompt, bars: Sequence[Bar], tokens: range, words: dict[str, str]) -> dict[str, Any]:
    """The component's data: texts of tokens, and of each rule a character for each token.

    It is 3 for a token that an outer level merges, 2 for one that is kept, 1 for one that is dropped, and 0 for one
    that an outer level drops.

    Args:
        prompt: see `rules_view`.
        bars: see `rules_view`.
        tokens: see `rules_view`.
        words: see `rules_view`.
    """
    shown = slice(tokens.start, tokens.stop)
    return {
        "first": tokens.start,
        "pieces": prompt.pieces[shown].tolist(),
        "rules": [{"name": bar.name, "states": "".join(map(str, _states(bar)[shown].tolist()))} for bar in bars],
        "words": words,
    }


def _states(bar: Bar) -> np.ndarray:
    """(T,) the number of every token's state."""
    return np.where(bar.merged, 3, bar.kept.astype(int) + bar.reached)
