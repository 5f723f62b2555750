"""One prompt through one checkpoint: which tokens were kept, why, and what that saved."""

import io
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.record import RunOptions
from app import runs
from app.components.routing_view import Shown, routing_view
from app.messages import plain, progress_bar, show_error
from app.settings import Settings
from app.strings import language, say, table
from app.views import chooser, costs, history, levels, token
from subllm import PromptTooLongError, SubllmError


@dataclass(frozen=True)
class _Request:
    """What the user asks for."""

    settings: Settings
    choice: str
    device: str
    dtype: str
    options: RunOptions
    text: str
    chat: bool


def show() -> None:
    """The page."""
    settings = Settings.read()
    linked = _read_link()
    st.title(say("title"))
    st.write(say("intro"))
    choice, device, dtype, options = _sidebar(settings)
    text, chat, pressed = _prompt_form()
    request = _Request(settings, choice, device, dtype, options, text, chat)
    message = st.container()  # stays above the results
    cut = not pressed and _show_failure(message)
    wanted = pressed or linked or cut
    with closing(_run(request, message, truncate=cut) if wanted else _nothing()) as stages:
        more = next(stages, False)
        trace = history.choose("earlier", "earlier")
        if trace is not None:
            _results(trace, settings, whole=not more)
        elif not wanted:
            st.info(say("nothing_yet"), icon=":material/info:")
        list(stages)  # what is known first is on screen while the rest is made
        if more or (wanted and "failure" in st.session_state):
            st.rerun()


def _nothing() -> Generator[bool]:
    yield from ()


def _run(request: _Request, message: Any, *, truncate: bool) -> Generator[bool]:
    """Make the trace, stage by stage; on failure say why, and leave the last good one on screen.

    Yields:
        Whether there will be more to show.
    """
    st.session_state.pop("failure", None)
    place = message.empty()
    progress = progress_bar(place, key="stop")
    try:
        folder = request.settings.locate(request.choice, progress)
        progress(0.0, "loading")
        source = runs.Source(request.text, request.chat, request.choice, folder, request.device, request.dtype)
        limit = request.settings.max_tokens
        first = True
        for trace, whole in runs.run(source, request.options, progress, truncate=truncate, limit=limit):
            history.remember(trace, source)
            if first:
                st.session_state.pop("earlier", None)  # show the new one
            first = False
            yield not whole
        place.empty()
    except (SubllmError, AnalysisError) as error:
        st.session_state["failure"] = error


def _show_failure(message: Any) -> bool:
    """Say why the last run failed; True if the user wants a prompt that is too long to be cut."""
    failure = st.session_state.get("failure")
    with message:
        if failure is not None:
            show_error(failure)
        if isinstance(failure, PromptTooLongError):
            return st.button(say("cut", limit=f"{failure.limit:,}"), key="cut")
    return False


def _read_link() -> bool:
    """Take over what a link says, once per session; True if there is a prompt to run."""
    if "linked" in st.session_state:
        return False
    st.session_state["linked"] = True
    link = st.query_params
    if "prompt" not in link:
        return False
    st.session_state["prompt"], st.session_state["chat"] = link["prompt"], link.get("chat") == "1"
    st.session_state["example"] = None
    if "checkpoint" in link:
        st.session_state["checkpoint"] = link["checkpoint"]
    st.session_state["shown"] = {key: link[key] for key in ("level", "selected", "colour") if key in link}
    return True


def _write_link(trace: Trace, shown: Shown) -> None:
    """Put into the address what restores this view; a long prompt is left out."""
    source = history.source_of(trace)
    if len(source.text) > history.LONGEST_LINK:
        st.query_params.from_dict({"lang": language()})
        return
    fields = {"checkpoint": source.choice, "prompt": source.text, "chat": int(source.chat), "lang": language()}
    fields |= {"level": shown.level, "selected": shown.selected, "colour": shown.colour}
    st.query_params.from_dict({key: str(value) for key, value in fields.items()})


def _sidebar(settings: Settings) -> tuple[str, str, str, RunOptions]:
    with st.sidebar:
        choice, device, dtype = chooser.checkpoint(settings)
        st.session_state.setdefault("new tokens", 40)
        st.session_state.setdefault("compare", True)
        new_tokens = st.slider(say("new_tokens"), 0, 200, key="new tokens", persist_state="session")
        compare = st.toggle(say("compare"), key="compare", help=say("compare_help"), persist_state="session")
        chooser.language_switch()
    return choice, device, dtype, RunOptions(new_tokens, compare, settings.max_seconds)


def _prompt_form() -> tuple[str, bool, bool]:
    examples = chooser.examples()
    if "prompt" not in st.session_state:
        first = next(iter(examples.values()))
        typed = st.session_state.get("typed", (first["text"], first["chat"], first["name"]))  # before another page
        st.session_state["prompt"], st.session_state["chat"], st.session_state["example"] = typed

    def fill() -> None:
        entry = examples.get(st.session_state["example"])
        if entry:
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]

    names = {name: entry.get(language(), name) for name, entry in examples.items()}
    st.pills(say("examples"), list(examples), key="example", on_change=fill, format_func=names.__getitem__)
    text = st.text_area(say("prompt"), key="prompt", height=140)
    left, right = st.columns([1, 4], vertical_alignment="center")
    pressed = left.button(say("run"), type="primary", width="stretch", icon=":material/play_arrow:")
    chat = right.toggle(say("chat"), key="chat", help=say("chat_help"))
    st.session_state["typed"] = (text, chat, st.session_state["example"])
    return text, chat, pressed


@st.fragment
def _results(trace: Trace, settings: Settings, *, whole: bool) -> None:
    """What is known about a run; while it goes on, only what is known first."""
    words, where = table(language()), trace.provenance
    source = history.source_of(trace)
    trace = st.session_state.get("read_off", {}).get(trace.digest, trace)
    st.subheader(say("read"), help=say("read_help"))
    st.caption(plain(f"{where.checkpoint} · {where.structure} · {where.device} · {where.dtype} · {where.attention}"))
    costs.headline(trace)
    shown = routing_view(trace, Shown.parse(st.session_state.get("shown"), trace), words, key="routing")
    st.session_state["shown"] = vars(shown)
    _write_link(trace, shown)
    if not whole:
        return
    st.subheader(say("depth"), help=say("depth_help"))
    token.show(trace, source, shown)
    _read_off_all(trace, source, settings)
    st.subheader(say("say"))
    levels.continuation(trace)
    st.subheader(say("costs"))
    costs.table(trace)
    if trace.num_spans:
        st.subheader(say("by_level"))
        levels.show(trace, shown)
    st.download_button(say("save"), lambda: _saved(trace), "trace.npz", icon=":material/download:", on_click="ignore")


def _read_off_all(trace: Trace, source: runs.Source, settings: Settings) -> None:
    """Offer the colour "confidence", which costs more than the run did."""
    if "confidence" in Shown.colours(trace):
        return
    share = f"{costs.lens_cost(trace, source):.1f}"
    if not st.button(say("lens_run"), icon=":material/layers:", help=say("lens_help", share=share)):
        return
    place = st.empty()
    try:
        found = runs.read_off_all(source, trace, settings.max_seconds, progress_bar(place))
    except (SubllmError, AnalysisError) as error:
        place.empty()
        show_error(error)
        return
    st.session_state["read_off"] = {trace.digest: found}
    st.rerun(scope="fragment")


def _saved(trace: Trace) -> bytes:
    file = io.BytesIO()
    trace.save(file)
    return file.getvalue()
