"""One prompt through one checkpoint: which tokens were kept, why, and what that saved."""

import io
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.run import RunOptions
from app import engine, state
from app.messages import ProgressBar, plain, show_error
from app.settings import Settings
from app.state import Form, Run, session
from app.strings import language, name_of, say
from app.views import chooser, history
from app.views.chooser import Choice
from app.views.trace import costs, levels, text_and_map, token
from subllm import PromptTooLongError, SubllmError


@dataclass(frozen=True)
class _Request:
    """What the visitor asks for."""

    settings: Settings
    choice: Choice
    options: RunOptions
    form: Form


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("title"))
    st.write(say("intro"))
    linked = state.open_link(settings)
    choice, options = _sidebar(settings)
    form, pressed = _prompt_form()
    request = _Request(settings, choice, options, form)
    message = st.container()  # stays above the results
    cut = not pressed and _show_failure(message)
    wanted = pressed or linked or cut
    with closing(_run(request, message, truncate=cut) if wanted else _nothing()) as stages:
        more = next(stages, False)
        run = history.choose("earlier", "explore")
        if run is not None:
            _results(run, settings, whole=not more)
        elif not wanted:
            st.info(say("nothing_yet"), icon=":material/info:")
        list(stages)  # what is known first is on screen while the rest is made
        if more or (wanted and session().failure is not None):
            st.rerun()


def _nothing() -> Generator[bool]:
    yield from ()


def _run(request: _Request, message: Any, *, truncate: bool) -> Generator[bool]:
    """Make the trace, stage by stage. A failure is noted, and the last trace stays on screen.

    Yields:
        Whether there will be more to show.
    """
    session().failure = None
    with message:
        progress = ProgressBar("stop")
    try:
        with progress:
            model = request.choice.locate(request.settings, progress)
            recipe = engine.Recipe(request.form.text, request.form.chat, model)
            limit = request.settings.max_tokens
            for trace, whole in engine.run(recipe, request.options, progress, truncate=truncate, limit=limit):
                session().remember(trace, recipe)
                yield not whole
    except (SubllmError, AnalysisError) as error:
        session().failure = error
    finally:
        session().end_link()


def _show_failure(message: Any) -> bool:
    """Show why the last run failed; True if the visitor asks for a prompt that is too long to be cut."""
    failure = session().failure
    with message:
        if failure is not None:
            show_error(failure)
        if isinstance(failure, PromptTooLongError):
            return st.button(say("cut", n=f"{failure.limit:,}"), key="cut")
    return False


def _sidebar(settings: Settings) -> tuple[Choice, RunOptions]:
    with st.sidebar:
        choice = chooser.model(settings)
        st.session_state.setdefault("new tokens", 40)
        st.session_state.setdefault("compare", True)
        new_tokens = st.slider(say("new_tokens"), 0, 200, key="new tokens", persist_state="session")
        compare = st.toggle(say("compare"), key="compare", help=say("compare_help"), persist_state="session")
        chooser.language_switch()
    return choice, RunOptions(new_tokens, compare, settings.max_seconds)


def _prompt_form() -> tuple[Form, bool]:
    """The form as it is filled in, and whether Run was clicked."""
    examples = chooser.examples()
    own = session()
    form = own.form = own.form or chooser.first_form()
    if "prompt" not in st.session_state:  # the page is opened, for the first time or again
        st.session_state["prompt"], st.session_state["chat"] = form.text, form.chat
        st.session_state["example"] = form.example

    def fill() -> None:
        chosen = st.session_state["example"]
        entry = examples.get(chosen)
        if entry and own.form and chosen != own.form.example:  # a browser can send again what it sent before
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]

    names = {name: entry.get(language(), name) for name, entry in examples.items()}
    st.pills(say("examples"), list(examples), key="example", on_change=fill, format_func=names.__getitem__)
    text = st.text_area(say("prompt"), key="prompt", height=140)
    left, right = st.columns([1, 4], vertical_alignment="center")
    pressed = left.button(say("run"), type="primary", width="stretch", icon=":material/play_arrow:")
    chat = right.toggle(say("chat"), key="chat", help=say("chat_help"))
    own.form = Form(text, chat, st.session_state["example"])
    return own.form, pressed


@st.fragment
def _results(run: Run, settings: Settings, *, whole: bool) -> None:
    """The results of a run; while it is in progress, only the first of them."""
    trace, where = run.trace, run.trace.provenance
    st.subheader(say("read"), help=say("read_help"))
    st.caption(
        plain(f"{name_of(where.checkpoint)} · {where.structure} · {where.device} · {where.dtype} · {where.attention}")
    )
    costs.headline(trace)
    shown = text_and_map.show(trace, key="routing")
    state.write_link(run)
    if not whole:
        return
    st.subheader(say("depth"), help=say("depth_help"))
    token.show(run, shown)
    _read_off_all(run, settings)
    st.subheader(say("say"))
    levels.continuation(trace)
    st.subheader(say("costs"))
    costs.table(trace)
    if trace.routing.num_levels:
        st.subheader(say("by_level"))
        levels.show(trace, shown)
    st.download_button(say("save"), lambda: _saved(trace), "trace.npz", icon=":material/download:", on_click="ignore")


def _read_off_all(run: Run, settings: Settings) -> None:
    """Offer the colour "confidence", which takes more work than the run."""
    if run.trace.blocks is None or run.trace.blocks.confidence is not None:
        return
    share = f"{costs.lens_cost(run):.1f}"
    pressed = st.button(say("lens_run"), icon=":material/layers:", help=say("lens_help", share=share))
    progress = ProgressBar("stop lens")
    if not pressed:
        return
    try:
        with progress:
            found = engine.read_off_all(run.recipe.model, run.trace, settings.max_seconds, progress)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    session().remember(found, run.recipe, shown=False)
    st.rerun()  # the whole page: what its fragments are given is another trace now


def _saved(trace: Trace) -> bytes:
    file = io.BytesIO()
    trace.save(file)
    return file.getvalue()
