"""Flags on odd things about a trace, folded up: how many, and a sentence for each."""

import streamlit as st

from analysis import Trace
from analysis.figures.terms import flag_in_words
from analysis.trace.flags import flags
from app.messages import plain
from app.strings import language, say, table


def show(trace: Trace) -> None:
    """The flags; nothing where nothing is odd.

    Args:
        trace: trace of a prompt.
    """
    found = flags(trace)
    if not found:
        return
    words = table(language())
    with st.expander(say("flags_title", count=len(found)), icon=":material/flag:"):
        st.markdown("\n".join(f"- {plain(flag_in_words(trace, flag, words))}" for flag in found))
        st.caption(plain(say("flags_help")))
