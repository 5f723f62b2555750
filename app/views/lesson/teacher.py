"""What a teacher needs: a link that pins the lesson, the command that joins answers, and a lesson of one's own."""

from dataclasses import replace

import streamlit as st

from analysis import AnalysisError
from analysis.lesson.content import MOST_BYTES, Lesson
from app import links
from app.messages import show_error
from app.state import Run, session
from app.strings import say

_JOIN = "subllm answers answers-*.csv --out class.csv"


def show(base: Run, *, uploads: bool) -> None:
    """The folded part at the end of the panel.

    Args:
        base: run that the stops are about.
        uploads: whether files may be opened.
    """
    with st.expander(say("lesson_teachers"), icon=":material/co_present:"):
        link = links.link_of(base)
        if session().lesson.own is not None:  # a link cannot hold it, and a pinned page has no place to open it
            st.write(say("lesson_teachers_own"))
        elif link is not None:
            pinned = replace(link, fields={**link.fields, "pin": "1"})
            st.write(say("lesson_teachers_link"))
            st.code(f"{st.context.url or ''}{pinned}", language=None, wrap_lines=True)
        else:
            st.write(say("lesson_teachers_no_link"))
        st.write(say("lesson_teachers_join"))
        st.code(_JOIN, language=None, wrap_lines=True)
        if uploads:
            _own_lesson()


def _own_lesson() -> None:
    own = session()
    file = st.file_uploader(say("lesson_teachers_file"), "json", key="lesson file", max_upload_size=1)
    if file is None or own.recall("lesson file", file.file_id):
        return
    own.found["lesson file"] = (file.file_id, True)
    try:
        own.lesson.own = Lesson.read(file.getvalue()[: MOST_BYTES + 1])
    except AnalysisError as error:
        own.found.pop("lesson file")
        show_error(error)
        return
    own.lesson.stop = own.lesson.own.stops[0].key
    own.lesson.given.clear()
    own.lesson.answers.clear()
    st.rerun()
