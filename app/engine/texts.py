"""Texts that are continued token by token; sessions hold them as recipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import streamlit as st

from analysis.debug.edits import Edit
from analysis.debug.generation import Generation, NewToken, Sampling
from analysis.guard import Progress
from analysis.trace.parts import Prompt

from .models import ModelSpec, ModelStore
from .queue import turn
from .work import admit

_MOST = 4  # texts whose caches are kept


@dataclass(frozen=True, eq=False)
class Text:
    """The recipe of a text that is continued step by step.

    Attributes:
        model: that continues it, or whose dense model does.
        prompt: tokenized.
        sampling: how tokens are chosen.
        edits: to the routing.
        dense: whether the dense model continues it.
        tokens: generated so far.
    """

    model: ModelSpec
    prompt: Prompt
    sampling: Sampling
    edits: tuple[Edit, ...]
    dense: bool
    tokens: tuple[NewToken, ...] = ()


@st.cache_resource(show_spinner=False)
def _live() -> ModelStore[Generation]:
    return ModelStore(_MOST)


@contextmanager
def _written(text: Text, progress: Progress) -> Iterator[Generation]:
    """A text with its cache, ready to be continued, during a turn of its device."""
    checkpoint, twin = text.model.load(progress)
    model = twin.model if text.dense else checkpoint.model
    prompt = text.prompt
    key = (id(model), prompt.text, prompt.token_ids.tobytes(), text.sampling, text.edits)
    with turn(text.model.device, progress):
        live = _live().values.take(key)  # nobody else can have it meanwhile
        if live is None:
            _live().values.make_room()
            admit(progress, len(prompt), texts=1)
            live = Generation(model, prompt, text.sampling, () if text.dense else text.edits, progress=progress)
        live.restore(text.tokens)
        yield live
        _live().put(key, live)


def finished(text: Text, progress: Progress) -> bool:
    """Whether a text has ended; its prompt is processed if its cache is not kept.

    Args:
        text: to be continued.
        progress: receives the number of runs ahead.

    Raises:
        AnalysisError: if the prompt fills the model, or an edit does not fit.
    """
    with _written(text, progress) as live:
        return live.finished


def write(texts: Sequence[Text], tokens: int, progress: Progress) -> Iterator[list[Text]]:
    """Continue texts by some tokens each, in turn.

    Args:
        texts: to be continued; those that have ended stay as they are.
        tokens: number of tokens for each text.
        progress: receives how many are done; may raise to stop.

    Yields:
        The texts after every token.
    """
    written = list(texts)
    for done in range(tokens):
        for number, text in enumerate(written):
            with _written(text, progress) as live:
                progress(done / tokens, "continuing", done=done, length=tokens)
                if not live.finished:
                    admit(progress, 1)
                    written[number] = replace(text, tokens=(*text.tokens, live.step()))
        yield list(written)


def branch(text: Text, length: int, token: int, progress: Progress) -> Text:
    """Go back in a text, and continue it with another token.

    Args:
        text: to be changed.
        length: number of tokens that stay.
        token: id of the token that follows them.
        progress: receives the number of runs ahead.
    """
    kept = replace(text, tokens=text.tokens[:length])
    with _written(kept, progress) as live:
        admit(progress, 1)
        return replace(kept, tokens=(*kept.tokens, live.step(token)))
