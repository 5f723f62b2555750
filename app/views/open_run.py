"""A run from a file: shown without its model, beside the session's own runs."""

import streamlit as st

from analysis import AnalysisError
from app.limits import Feature
from app.messages import ProgressBar, show_error
from app.settings import Settings
from app.state import session
from app.strings import say
from app.visitors import working


def show(settings: Settings) -> None:
    """A place for a file, unless the operator has switched uploads off.

    Args:
        settings: what the operator allows.
    """
    if Feature.UPLOADS not in settings.limits.features:
        return
    with st.expander(say("open_run"), icon=":material/folder_open:"):
        file = st.file_uploader(say("open_run_help"), type="npz", key="run file")
        progress = ProgressBar()
        if file is None:
            return
        try:
            with working("upload", settings, progress, Feature.UPLOADS, drawn=False):
                session().open_trace(file.file_id, file, settings.limits.tokens)
        except AnalysisError as error:
            show_error(error)
