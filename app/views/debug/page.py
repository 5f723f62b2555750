"""The page Debug: what if, why, step by step, and side by side."""

import streamlit as st

from analysis import AnalysisError
from analysis.run import RunOptions
from app import engine, state
from app.messages import ProgressBar, show_error
from app.settings import Settings
from app.state import session
from app.strings import say
from app.views import chooser, history
from app.views.chooser import Choice
from app.views.debug import steps, whatif, why
from app.views.trace import pairs as beside
from subllm import SubllmError


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("debug_title"))
    st.write(say("debug_intro"))
    linked = state.open_link(settings)
    with st.sidebar:
        choice = chooser.model(settings)
        chooser.language_switch()
    _read_prompt(settings, choice, linked=linked)
    run = history.choose("debugged", "debug")
    if run is None:
        st.info(say("debug_nothing"), icon=":material/info:")
        return
    tabs = st.tabs(
        [say(f"tab_{name}") for name in ("whatif", "why", "steps", "beside")], on_change="rerun", key="debug"
    )
    for tab, view in zip(tabs, (whatif.show, why.show, steps.show, beside.show), strict=True):
        if tab.open:
            with tab:
                view(run, settings)
    state.write_link(run)


def _read_prompt(settings: Settings, choice: Choice, *, linked: bool) -> None:
    """A form for a prompt to debug; runs of the page Explore are listed already."""
    own = session()
    with st.expander(say("debug_new"), expanded=not own.runs, icon=":material/edit:"):
        form = own.form = own.form or chooser.first_form()
        st.session_state.setdefault("debug prompt", form.text)
        st.session_state.setdefault("debug chat", form.chat)
        text = st.text_area(say("prompt"), key="debug prompt", height=100, persist_state="session")
        left, right = st.columns([1, 4], vertical_alignment="center")
        pressed = left.button(say("debug_read"), type="primary", icon=":material/play_arrow:", width="stretch")
        chat = right.toggle(say("chat"), key="debug chat", help=say("chat_help"), persist_state="session")
    progress = ProgressBar("stop reading")  # always there: what stands below must keep its place
    if not pressed and not linked:
        return
    try:
        with progress:
            recipe = engine.Recipe(text, chat, choice.locate(settings, progress))
            options = RunOptions(0, False, settings.max_seconds)
            for trace, _ in engine.run(recipe, options, progress, truncate=False, limit=settings.max_tokens):
                own.remember(trace, recipe)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    finally:
        own.end_link()
    st.rerun()  # with the prompt folded up, so that nothing moves under the pointer later
