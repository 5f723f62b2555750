"""What the buttons of stops do: the prompt with an edit, an example, the attention of a token, a token dropped."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import Edit, EditKind, parse_edits
from analysis.debug.rules import Rule
from analysis.figures.terms import level_name
from analysis.guard import Progress
from analysis.lesson.checks import levels_to_measure
from analysis.lesson.content import Action, filled, in_language
from analysis.lesson.formulas import Figures
from analysis.lesson.place import Place, viewer_and_viewed
from analysis.run import RunOptions
from app import engine
from app.engine import Recipe
from app.messages import ProgressBar, plain, show_error
from app.settings import SHIPPED, Settings
from app.state import Form, Run, session
from app.strings import language, name_of, say, table
from app.views.chooser import Choice, examples
from app.visitors import working
from subllm import SubllmError

T = TypeVar("T")
_ROWS = 6  # tokens in the table of attention
_NEW = 40  # tokens of a continuation


def show(
    action: Action, key: str, place: Place, figures: Figures, run: Run, base: Run, choice: Choice, settings: Settings
) -> None:
    """A stop's button, and what it led to.

    Args:
        action: what it does.
        key: of the stop.
        place: where the learner is.
        figures: live figures of the stop.
        run: run that is shown.
        base: run that the stop is about.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
    """
    own = session()
    if run.trace.run in own.lesson.edited:
        st.info(plain(say("lesson_edited", edits="; ".join(run.trace.provenance.edits))), icon=":material/edit:")
        if st.button(say("lesson_undo"), key=f"lesson undo {key}", icon=":material/undo:", type="primary"):
            own.choose(own.lesson.run)
            st.rerun()
        return
    label = plain(filled(in_language(action.label, language()), figures.values))
    pressed = st.button(label, key=f"lesson action {key}", icon=":material/play_arrow:", on_click=_fill, args=(action,))
    progress = ProgressBar()
    try:
        if pressed and action.kind == "example":
            entry = examples().get(action.what) or {"text": action.what, "chat": False}
            _run(Form(entry["text"], entry["chat"]), choice, settings, progress)
        elif pressed and action.kind == "edits":
            _edit(filled(action.what, figures.values), base, choice, settings, progress)
        elif action.kind == "attention":
            _attention(place, base, choice, settings, progress, pressed=pressed)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    if pressed and action.kind != "attention":
        st.rerun()


def _fill(action: Action) -> None:
    """Put an example into the form as well."""
    entry = examples().get(action.what) if action.kind == "example" else None
    if entry is not None:
        session().form = Form(entry["text"], entry["chat"], action.what)
        if "prompt" in st.session_state:
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]
            st.session_state["example"] = action.what


def _run(form: Form, choice: Choice, settings: Settings, progress: ProgressBar) -> None:
    own = session()
    with working("lesson", settings, progress) as work:
        recipe = Recipe(form.text, form.chat, choice.locate(settings, work))
        options = RunOptions(min(_NEW, settings.limits.new_tokens), True)
        limit, keep = settings.limits.tokens, partial(own.remember, origin=recipe, shown=False, unfinished=True)
        for trace, _ in engine.run(recipe, options, work, truncate=False, limit=limit, so_far=keep):
            own.remember(trace, recipe)


def _here(base: Run, choice: Choice, settings: Settings, work: Progress) -> tuple[Trace, Recipe]:
    """A run, and what it takes to make it again; made anew with the chosen model if its own is absent.

    Raises:
        AnalysisError: if the chosen model makes another run of it.
    """
    own = session()
    if base.has_model:
        return base.trace, base.recipe
    text, chat = base.trace.prompt.text, False  # the text of a chat has its template already
    recipe = Recipe(text, chat, choice.locate(settings, work))
    edits = tuple(map(Edit.parse, base.trace.provenance.edits))
    rule = Rule(say("lesson_rule"), "", edits) if edits else None
    options = RunOptions(min(_NEW, settings.limits.new_tokens), True, rule=rule)
    *_, (trace, _) = engine.run(recipe, options, work, truncate=False, limit=settings.limits.tokens)
    if _what_ran(trace) != _what_ran(base.trace):
        raise AnalysisError(
            "The question is about a run of {checkpoint}, and the checkpoint that is chosen makes another run of this "
            "prompt. Choose {checkpoint}, or click Run and take this stop on your own run.",
            checkpoint=name_of(base.trace.provenance.checkpoint),
        )
    own.remember(trace, recipe)
    for key, asked in own.lesson.given.items():  # the same prompt, measured here
        if asked.run == base.trace.run:
            own.lesson.given[key] = asked._replace(run=trace.run)
    own.lesson.run = trace.run
    return trace, recipe


def _what_ran(trace: Trace) -> tuple[str, str, bytes, tuple[str, ...], str]:
    where = trace.provenance  # a checkpoint that ships is built on each machine, where its bytes may differ
    model = where.checkpoint if where.checkpoint in SHIPPED else where.digest
    return model, where.structure, trace.prompt.token_ids.tobytes(), where.edits, where.patch


def _edit(text: str, base: Run, choice: Choice, settings: Settings, progress: ProgressBar) -> None:
    own = session()
    with working("lesson", settings, progress) as work:
        before, recipe = _here(base, choice, settings, work)
        edits = [*map(Edit.parse, before.provenance.edits), *parse_edits(text)]
        options = RunOptions(0, False, rule=Rule(say("lesson_rule"), "", tuple(edits)))
        *_, (trace, _) = engine.run(recipe, options, work, truncate=False, limit=settings.limits.tokens)
        own.lesson.edited.add(trace.run)
        own.remember(trace, recipe)


def measure(
    base: Run, place: Place, token: int, choice: Choice, settings: Settings, progress: ProgressBar
) -> tuple[Trace, dict[int, float]]:
    """The run, and the probability of its likeliest next token after a token is dropped at each level that keeps it.

    It is by level, with that of the run itself at 0. A run whose model is absent is made anew.

    Args:
        base: run that the stop is about; it has no edits.
        place: where the learner is.
        token: that is dropped.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
        progress: shows the progress.

    Raises:
        AnalysisError: at a limit, or if the model of the run is absent and another one is chosen.
        SubllmError: if the model cannot be loaded.
    """
    found: dict[int, float] = {}
    with working("lesson", settings, progress) as work:
        trace, recipe = _here(base, choice, settings, work)
        assert trace.predictions is not None
        wanted = int(trace.predictions.next_ids[0])
        for level in levels_to_measure(place):
            edits = [Edit(EditKind.DROP, level, str(token))]
            outcome = next(engine.edited(recipe.model, trace, "", edits, work, settings.limits.tokens))
            at = outcome.next_ids.tolist().index(wanted)
            found[0], found[level] = outcome.next_probabilities[:, at].tolist()
    return trace, found


def on_demand(
    name: str,
    about: Hashable,
    read: Callable[[Recipe, Trace, Progress], T],
    place: Place,
    base: Run,
    choice: Choice,
    settings: Settings,
    progress: ProgressBar,
    *,
    pressed: bool,
) -> T | None:
    """What a button of a stop reads of the run; None until it is pressed.

    Args:
        name: that the session keeps it under.
        about: what it depends on besides the run.
        read: reads it, given what it takes to run the model, the run and what receives the progress.
        place: where the learner is.
        base: run that the stop is about.
        choice: the model to run, where the one of the run is absent.
        settings: what the operator allows.
        progress: shows the progress.
        pressed: whether the button was pressed.

    Raises:
        AnalysisError: at a limit, or if the model of the run is absent and another one is chosen.
        SubllmError: if the model cannot be loaded.
    """
    own, run = session(), place.trace.run
    if pressed:
        with working("lesson", settings, progress) as work:
            made, recipe = _here(base, choice, settings, work)
            own.found[name] = (made.run, about), read(recipe, made, work)
        if made.run != run:
            st.rerun()
    found: T | None = own.recall(name, (run, about))
    return found


def _attention(
    place: Place, base: Run, choice: Choice, settings: Settings, progress: ProgressBar, *, pressed: bool
) -> None:
    """What a token attends to in a block that processes every token, if there is one, and in one inside the level."""
    trace = place.trace
    viewer, _ = viewer_and_viewed(place)

    def read(recipe: Recipe, made: Trace, work: Progress) -> np.ndarray:
        return engine.attention(recipe.model, made, viewer, work)

    found = on_demand("lesson attention", viewer, read, place, base, choice, settings, progress, pressed=pressed)
    if found is None:
        return
    levels = trace.routing.block_levels
    inner = int(np.flatnonzero(levels == place.level)[0])
    blocks = [*np.flatnonzero(levels == 0)[-1:].tolist(), inner]
    shares = [found[block].mean(0)[: viewer + 1] for block in blocks]
    order = np.argsort(-shares[0])[:_ROWS]
    name, outer = level_name(trace, place.level, table(language())), blocks[0]
    which = "lesson_attention" if outer != inner else "lesson_attention_inside"
    st.caption(plain(say(which, token=place.named(viewer), outer=outer, inner=inner, level=name)))
    columns = {say("token"): [plain(place.named(int(token))) for token in order]}
    for block, share in zip(blocks, shares, strict=True):
        columns[say("lesson_attention_block", block=block)] = [
            f"{share[token]:.1%}" if block != inner or place.kept[token] else say("lesson_no_column") for token in order
        ]
    st.table(pd.DataFrame(columns).set_index(say("token")))
