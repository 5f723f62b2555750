"""A small run over a corpus, started on the page."""

import re

import streamlit as st

from analysis import AnalysisError
from analysis.corpus.summary import Summary
from app import engine
from app.messages import ProgressBar, show_error
from app.settings import Settings
from app.state import session
from app.strings import language, say
from app.views import boxes, chooser
from app.views.chooser import Choice
from app.visitors import working
from subllm import SubllmError

OWN = "own corpus"  # what this visitor has run, among the results
_LEAST, _MOST = 500, 20_000  # tokens of a run on the page
_LONGEST = 200_000  # characters of own text
_MOST_TEXTS = 1_000  # documents of own text


def own() -> Summary | None:
    """What this visitor has run."""
    found: Summary | None = session().recall("corpus run", ())
    return found


def show(settings: Settings, choice: Choice) -> None:
    """What to read, and the button that starts.

    Args:
        settings: what the operator allows.
        choice: checkpoint, device and dtype.
    """
    most = int(min(_MOST, settings.limits.hourly_tokens))
    with st.container(key="corpus start").expander(say("corpus_start"), icon=":material/play_arrow:"):
        st.caption(say("corpus_start_help"))
        if most <= _LEAST:
            st.info(say("corpus_limited", least=_LEAST))
            return
        with st.form("corpus form", border=False):
            text = st.text_area(
                say("corpus_text"), key="corpus text", max_chars=_LONGEST, help=say("corpus_text_help"),
                persist_state="session",
            )  # fmt: skip
            tokens = st.slider(
                say("corpus_limit"), _LEAST, most, min(5_000, most), step=500, key="corpus tokens",
                persist_state="session",
            )  # fmt: skip
            pressed = st.form_submit_button(say("corpus_run"), type="primary")
        bar = ProgressBar()
        if not pressed:
            return
        try:
            with working("corpus", settings, bar) as work:
                found = engine.read_corpus(choice.locate(settings, work), _documents(text), tokens, work)
                session().found["corpus run"] = ((), found)
                boxes.choose("corpus result", OWN)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
            return
    st.rerun()


def _documents(text: str) -> dict[str, str]:
    """The visitor's documents, which empty lines divide, or else the examples of Explore; by their names."""
    if not text.strip():
        return {
            entry.get(language(), name): entry["text"] for name, entry in chooser.examples().items() if entry["text"]
        }
    found = [part for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()][:_MOST_TEXTS]
    return {f"{number}": part for number, part in enumerate(found, 1)}
