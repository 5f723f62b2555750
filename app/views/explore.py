"""One prompt through one checkpoint: which tokens were kept, why, and what that saved."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import read_edits
from analysis.figures.terms import common_word, device_words
from analysis.run import RunOptions
from app import engine, links, reproduce
from app.messages import ProgressBar, bounded, plain, show_error
from app.settings import Settings
from app.shipped_rules import rule_name
from app.state import Form, Run, session
from app.strings import language, name_of, say, table
from app.views import again, boxes, chooser, elsewhere, history, open_run, prompt_parts, rules, share, sidebar
from app.views.chooser import Choice
from app.views.lesson import page as lesson
from app.views.trace import answers, compare_rules, costs, levels, note, odd, segments, take_away, text_and_map, token
from app.visitors import working
from subllm import PromptTooLongError, SubllmError

_USUAL_NEW, _MOST_NEW = 40, 200  # tokens of a continuation


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
    choice, options = chooser.chosen(settings), _options(settings)
    linked, taken = session().take_asked(), session().lesson
    if sidebar.hidden(sidebar.EXPLORE):
        form, pressed = session().form or chooser.first_form(), False
    else:
        if taken.stop:
            frame: Any = st.expander(say("lesson_own_prompt"), icon=":material/edit:")
        else:
            st.title(say("title"))
            st.write(say("intro"))
            lesson.offer()
            frame = st.container()
        with frame:
            form, pressed = _prompt_form(settings)
        open_run.show(settings)
    request = _Request(settings, choice, options, form)
    if linked and session().linked_rule is not None:
        request = replace(request, options=replace(options, rule=session().linked_rule))
    message = st.container()  # stays above the results
    cut = not pressed and _show_failure(form, message)
    wanted = pressed or linked or cut
    with closing(_run(request, message, truncate=cut) if wanted else _nothing()) as stages:
        more = next(stages, False)
        run = session().run() if taken.stop or st.context.is_embedded else history.choose("earlier", "explore")
        if run is not None and taken.stop:
            lesson.show(run, choice, settings)
        elif run is not None:
            _results(run, settings, whole=not more)
        elif not wanted:
            st.info(say("nothing_yet"), icon=":material/info:")
        list(stages)  # what is known first is on screen while the rest is made
        if more or (wanted and (session().failure is not None or session().refused)):
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
        progress = ProgressBar()
    try:
        with working("run", request.settings, progress) as work:
            model = request.choice.locate(request.settings, work)
            recipe = engine.Recipe(request.form.text, request.form.chat, model)
            limit = request.settings.limits.tokens
            own, made = session(), recipe

            def keep(trace: Trace) -> None:
                own.remember(trace, made, shown=False, unfinished=True)

            stages = engine.run(recipe, request.options, work, truncate=truncate, limit=limit, so_far=keep)
            for trace, whole in stages:
                made = engine.recipe_of_cut(recipe, trace.prompt, work) if truncate else recipe
                own.remember(trace, made)
                yield not whole
    except (SubllmError, AnalysisError) as error:
        session().failure = (request.form, error)
    finally:
        session().end_link()


def _show_failure(form: Form, message: Any) -> bool:
    """Show why the run of a form failed; True if the visitor asks for a prompt that is too long to be cut."""
    failed, failure = session().failure or (None, None)
    with message:
        links.show_refused()
        if failed != form or failure is None:
            return False
        show_error(failure)
        if isinstance(failure, PromptTooLongError):
            return st.button(say("cut", n=f"{failure.limit:,}"), key="cut")
    return False


def _options(settings: Settings) -> RunOptions:
    """What a run makes besides its trace."""
    most = min(_MOST_NEW, settings.limits.new_tokens)
    if sidebar.hidden(sidebar.EXPLORE):
        return RunOptions(min(_USUAL_NEW, most), rule=rules.chosen())
    boxes.put("new tokens", min(st.session_state.get("new tokens", _USUAL_NEW), most))
    st.session_state.setdefault("compare", True)
    with st.sidebar:
        new_tokens = st.slider(say("new_tokens"), 0, most, key="new tokens", persist_state="session")
        compare = st.toggle(say("compare"), key="compare", help=say("compare_help"), persist_state="session")
        return RunOptions(new_tokens, compare, rule=rules.choose())


def _prompt_form(settings: Settings) -> tuple[Form, bool]:
    """The form as it is filled in, and whether Run was clicked."""
    examples = chooser.examples()
    own = session()
    form = own.form = own.form or chooser.first_form()
    if "prompt" not in st.session_state:  # the page is opened, for the first time or again
        st.session_state["prompt"], st.session_state["chat"] = form.text, form.chat
        st.session_state["example"] = form.example

    drawn = st.session_state["prompt"]

    def keep() -> None:  # called before the page is drawn, so that a click on a link to another page loses nothing
        own.form = replace(own.form or form, text=st.session_state["prompt"], chat=st.session_state["chat"])

    def fill() -> None:
        chosen, before = st.session_state["example"], own.form and own.form.example
        text = st.session_state["prompt"]
        if chosen is None and before in examples and text == drawn != examples[before]["text"]:
            chosen = st.session_state["example"] = before  # it is asked for again; a text typed just now is not touched
            before = None
        entry = examples.get(chosen)
        if entry and chosen != before:  # a browser can send again what it sent before
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]
        own.form = Form(st.session_state["prompt"], st.session_state["chat"], chosen)

    names = {name: entry.get(language(), name) for name, entry in examples.items()}
    st.pills(say("examples"), list(examples), key="example", on_change=fill, format_func=names.__getitem__)
    st.text_area(say("prompt"), key="prompt", height=140, on_change=keep)
    left, middle, right = st.columns([2, 5, 3], vertical_alignment="center")
    pressed = left.button(say("run"), type="primary", width="stretch", icon=":material/play_arrow:")
    middle.toggle(say("chat"), key="chat", help=say("chat_help"), on_change=keep)
    with right:
        prompt_parts.offer(settings, keep, "prompt", "chat", "example")
    own.form = Form(st.session_state["prompt"], st.session_state["chat"], st.session_state["example"])
    return own.form, pressed


@st.fragment
@bounded
def _results(run: Run, settings: Settings, *, whole: bool) -> None:
    """The results of a run; while it is in progress, only the first of them."""
    run = session().named(run.trace.run) or run  # it may have a note by now
    trace, where = run.trace, run.trace.provenance
    elsewhere.label(run)
    st.subheader(say("read"), help=say("read_help"))
    device = device_words(where.device, table(language()))
    st.caption(plain(f"{name_of(where.checkpoint)} · {where.structure} · {device} · {where.dtype} · {where.attention}"))
    if where.rule:
        st.caption(plain(say("rule_in_force", name=rule_name(where.rule), edits="; ".join(where.edits) or "–")))
    elif where.edits:
        st.caption(plain(say("steps_edits", edits="; ".join(where.edits))))
    if where.patch:
        st.caption(plain(say("labelled", label=say("report_patch"), value=where.patch)))
    costs.headline(trace)
    shown = text_and_map.show(trace, key="routing")
    odd.show(trace)
    answers.show(trace)
    links.write_link(run)
    if st.context.is_embedded:
        share.whole_page(run)
    if st.context.is_embedded or not whole:
        return
    st.subheader(say("depth"), help=say("depth_help"))
    token.show(run, shown, settings)
    _read_off_all(run, settings)
    st.subheader(say("say"))
    levels.continuation(trace, unfinished=run.unfinished)
    if trace.continuation is not None:
        answers.offer(run, trace.prompt, trace.continuation.ids.tolist(), read_edits(trace.provenance.edits), settings)
    st.subheader(say("costs"))
    costs.table(trace)
    if trace.routing.num_levels:
        st.subheader(say("by_level"))
        levels.show(trace, shown)
        st.subheader(say("segments_title"), help=common_word(trace, "segments_help", table(language()), "\n\n"))
        segments.show(trace, shown)
        st.subheader(say("rivals_title"), help=say("rivals_help"))
        compare_rules.show(run, shown, settings)
    if run.has_model and run.recipe.again:
        again.show(reproduce.traced(run.recipe, trace))
    share.show(run)
    note.show(run)
    take_away.show(trace, shown)


def _read_off_all(run: Run, settings: Settings) -> None:
    """Offer the colour "confidence", which takes more work than the run."""
    if not run.has_model or run.trace.blocks is None or run.trace.blocks.confidence is not None:
        return
    share = f"{costs.lens_cost(run):.1f}"
    pressed = st.button(say("lens_run"), icon=":material/layers:", help=say("lens_help", share=share))
    progress = ProgressBar()
    if not pressed:
        return
    try:
        with working("confidence", settings, progress) as work:
            found = engine.read_off_all(run.recipe.model, run.trace, work)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    session().remember(found, run.recipe, shown=False)
    st.rerun()  # the whole page: what its fragments are given is another trace now
