"""The page Debug: what if, why, step by step, patching, and side by side."""

from functools import partial

import streamlit as st

from analysis import AnalysisError
from analysis.run import RunOptions
from app import engine, links
from app.messages import ProgressBar, show_error
from app.settings import Settings
from app.state import Form, Run, session
from app.strings import say
from app.views import boxes, chooser, elsewhere, history, prompt_parts, share, sidebar
from app.views.chooser import Choice
from app.views.debug import patching, steps, whatif, why
from app.views.trace import answers, text_and_map
from app.views.trace import pairs as beside
from app.visitors import working
from subllm import SubllmError


def show() -> None:
    """The page."""
    settings = Settings.read()
    choice, linked = chooser.chosen(settings), session().take_asked()
    if sidebar.hidden(sidebar.DEBUG):
        form, pressed = session().form or chooser.first_form(), False
    else:
        st.title(say("debug_title"))
        st.write(say("debug_intro"))
        form, pressed = _prompt_form(settings)
    with st.container():  # always there, like the progress bar: what stands below must keep its place
        links.show_refused()
    progress = ProgressBar()
    if pressed or linked:
        _read(form, choice, settings, progress)
    run = history.choose("debugged", "debug")
    if run is None:
        st.info(say("debug_nothing"), icon=":material/info:")
        return
    elsewhere.label(run, debug=True)
    answers.show(run.trace)
    views = {"whatif": whatif.show, "why": why.show, "steps": steps.show, "patching": patching.show}
    if not run.has_model:
        views = dict.fromkeys(views, _without_model)
    views["beside"] = beside.show
    boxes.in_tabs({name: (say(f"tab_{name}"), partial(view, run, settings)) for name, view in views.items()}, "debug")
    links.write_link(run)
    if st.context.is_embedded:
        share.whole_page(run)
    else:
        share.show(run)


def _without_model(run: Run, settings: Settings) -> None:
    """What a tab shows of a run whose model is absent."""
    text_and_map.show(run.trace, key="measured view")
    elsewhere.model_absent(run)


def _prompt_form(settings: Settings) -> tuple[Form, bool]:
    """A form for a prompt to debug, and whether Run was clicked; runs of the page Explore are listed already."""
    own = session()
    with st.expander(say("debug_new"), expanded=not any(run.has_model for run in own.runs), icon=":material/edit:"):
        form = own.debug_form = own.debug_form or own.form or chooser.first_form()
        st.session_state.setdefault("debug prompt", form.text)
        st.session_state.setdefault("debug chat", form.chat)

        def keep() -> None:  # called before the page is drawn, so that a click on a link to another page loses nothing
            own.debug_form = Form(st.session_state["debug prompt"], st.session_state["debug chat"])

        st.text_area(say("prompt"), key="debug prompt", height=100, on_change=keep)
        left, middle, right = st.columns([2, 5, 3], vertical_alignment="center")
        pressed = left.button(say("debug_read"), type="primary", icon=":material/play_arrow:", width="stretch")
        middle.toggle(say("chat"), key="debug chat", help=say("chat_help"), on_change=keep)
        with right:
            prompt_parts.offer(settings, keep, "debug prompt", "debug chat")
        keep()
        return own.debug_form, pressed


def _read(form: Form, choice: Choice, settings: Settings, progress: ProgressBar) -> None:
    """Run the prompt."""
    own = session()
    try:
        with working("run", settings, progress) as work:
            recipe = engine.Recipe(form.text, form.chat, choice.locate(settings, work))
            limit = settings.limits.tokens
            options = RunOptions(0, False, rule=own.linked_rule)
            for trace, _ in engine.run(recipe, options, work, truncate=False, limit=limit):
                own.remember(trace, recipe)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    finally:
        own.end_link()
    st.rerun()  # with the prompt folded up, so that nothing moves under the pointer later
