"""What if: tokens forced to be kept or dropped, thresholds moved, levels switched off, and what that changes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import Edit, EditKind, kinds_in, without
from analysis.debug.intervene import Outcome, reachable
from analysis.debug.named_tokens import NAMES, ranges
from analysis.debug.search import Effects
from analysis.figures import debug as debug_figures
from analysis.figures.quoted import quoted
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import level_name, level_words, stopping_level
from analysis.trace.parts import Likelihood
from app import engine, reproduce
from app.edit_list import EditList
from app.messages import ProgressBar, plain, plot, show_error, sortable, told
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import again, rules
from app.views.boxes import chosen_in, one_of
from app.views.trace import text_and_map
from app.visitors import working
from subllm import SubllmError

_MEASURED = 16  # candidates of a search
_NAMED = 12  # edits or tokens that a message names
_LONGEST = 200  # characters of an edit's tokens in the list
_EVERY = 0  # every level among levels; a selector shows None as if nothing were chosen
_FLIPS = 50  # tokens in the table, per level
_ORDER = (  # of the kinds in the form
    EditKind.THRESHOLD,
    EditKind.RETENTION,
    EditKind.BUDGET,
    EditKind.BYPASS,
    EditKind.DENSE,
    EditKind.KEEP,
    EditKind.DROP,
)


def in_force(run: Run) -> list[Edit]:
    """The edits of a run that fit it; edits from a link may not."""
    return [edit for edit in session().edits_of(run.trace).edits if _fits(edit, run.trace)]


def _fits(edit: Edit, trace: Trace) -> bool:
    return _misfit(edit, trace) is None


def _misfit(edit: Edit, trace: Trace) -> AnalysisError | None:
    """What an edit does not fit, if anything."""
    try:
        edit.check(kinds_in(trace.routing), trace.prompt)
    except AnalysisError as error:
        return error
    return None


def show(run: Run, settings: Settings) -> None:
    """The tab."""
    own, trace = session(), run.trace
    edits, known = in_force(run), own.edits_of(trace)
    with st.container():  # always there: what stands below must keep its place
        _refused(trace, known, edits)
    if not trace.routing.num_levels:
        st.info(say("whatif_no_levels"))
        return
    answer = _answer()
    progress, place = ProgressBar(), st.container()
    try:
        with progress:
            stages = _stages(run, answer, edits, progress, settings)
            outcome = next(stages)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        _forces(trace, known, edits)
        return
    with place:
        st.caption(say("whatif_help"))
        shown = text_and_map.show(outcome.trace, key="whatif")
    _controls(trace, known, shown)
    _forces(trace, known, edits)
    rules.save_and_use(trace, known, edits, settings)
    _warnings(outcome, known, edits)
    with st.container():
        _next_tokens(outcome)
        _flips(outcome)
    progress.move()  # nothing above moves while the numbers at every position wait their turn
    try:
        for outcome in stages:
            progress.clear()
            _numbers(outcome)
    except (SubllmError, AnalysisError) as error:
        progress.clear()
        show_error(error)
    if outcome.trace.agreement is not None and edits:
        figure = debug_figures.by_position(outcome.trace, outcome.trace.agreement.divergence, say("divergence"))
        plot(st, figure, "whatif divergence")
        st.caption(say("divergence_help"))
        st.button(
            say("whatif_add"), icon=":material/compare:", help=say("whatif_add_help"), on_click=_remember,
            args=(run, outcome),
        )  # fmt: skip
    _search(run, answer, shown, settings)
    if run.recipe.again:
        code = reproduce.edited(run.recipe, edits, answer)
        st.code(code.command, language=None, wrap_lines=True)
        again.show(code, command=False)


def _answer() -> str:
    """Text whose probability is watched; it stays when another page is visited."""
    own = session()
    st.session_state.setdefault("answer", own.answer)

    def keep() -> None:
        own.answer = st.session_state["answer"]

    st.text_input(say("answer"), key="answer", help=say("answer_help"), on_change=keep)
    keep()
    return own.answer


def _refused(trace: Trace, known: EditList, fitting: list[Edit]) -> None:
    """Say which edits are not in force, and offer to remove them."""
    unfit = [edit for edit in known.edits if edit not in fitting]
    if known.unread:
        st.error(plain(say("edits_unread", why=told(known.unread))), icon=":material/error:")
    if unfit:
        named = say("semicolon").join(_in_words(edit, trace) for edit in unfit[:_NAMED])
        named += say("semicolon") + "…" if len(unfit) > _NAMED else ""
        last, levels = f"{trace.num_tokens - 1:,}", trace.routing.num_levels
        said = [say("edits_unfit", edits=named, levels=levels, last=last)]
        said += [told(error) for error in [_misfit(unfit[0], trace)] if error is not None]  # the first stands for all
        st.error(plain("\n\n".join(said)), icon=":material/error:")
    if known.unread or unfit:
        st.button(
            say("edits_refused_remove"), icon=":material/delete:", on_click=_remove_refused, args=(known, fitting)
        )


def _remove_refused(known: EditList, fitting: list[Edit]) -> None:
    known.unread = None
    known.change(fitting)


def _stages(run: Run, answer: str, edits: list[Edit], progress: ProgressBar, settings: Settings) -> Iterator[Outcome]:
    """What `engine.edited` yields, kept for reruns that change only the selection."""
    own, key = session(), (run.trace.digest, answer, tuple(edits))
    known: list[Outcome] = own.recall("outcomes", key) or []
    if len(known) == 2:
        yield from known
        return
    found: list[Outcome] = []
    own.found["outcomes"] = (key, found)
    with working("edits", settings, progress, drawn=False) as work:
        for outcome in engine.edited(run.recipe.model, run.trace, answer, edits, work, settings.limits.tokens):
            found.append(outcome)
            yield outcome


def _controls(trace: Trace, known: EditList, shown: Shown) -> None:
    """Buttons for the selected tokens, and a form for any edit."""
    tokens, words, edits = shown.tokens, table(language()), known.edits
    columns = st.columns([3, 2, 2, 2, 1, 1], vertical_alignment="bottom")
    names = {level: level_name(trace, level, words) for level in trace.routing.levels}
    names[_EVERY] = say("every_level")
    chosen = one_of(
        say("edit_level"), list(names), names.__getitem__, f"edit level {shown.level}", place=columns[0],
        default=shown.level - 1,
    )  # fmt: skip
    level = chosen or None
    fit = [edit for edit in edits if _fits(edit, trace)]
    left = without(fit, tokens, level, trace.prompt)
    rest = [*(edit for edit in edits if edit not in fit), *left]
    merging = [each for each in names if each != _EVERY and trace.routing.merges[each - 1] and level in (None, each)]
    for column, kind, icon in (
        (columns[1], EditKind.KEEP, "add_circle"),
        (columns[2], EditKind.DROP, "do_not_disturb_on"),
    ):
        column.button(
            say(f"edit_{kind}", n=len(tokens)), key=f"edit {kind}", icon=f":material/{icon}:", width="stretch",
            disabled=not tokens or bool(merging), on_click=known.change,
            args=([*rest, Edit(kind, level, ranges(tokens))],),
        )  # fmt: skip
    columns[3].button(
        say("edit_leave"), key="edit leave", width="stretch", disabled=left == fit, on_click=known.change,
        args=(rest,),
    )  # fmt: skip
    columns[4].button(
        "", icon=":material/undo:", help=say("undo"), key="undo", disabled=not known.can_undo, on_click=known.undo
    )
    columns[5].button(
        "", icon=":material/redo:", help=say("redo"), key="redo", disabled=not known.can_redo, on_click=known.redo
    )
    if merging:
        st.caption(plain(say("whatif_merging", level=names[merging[0]])))
    with st.form("number edit", border=False):
        columns = st.columns([3, 2, 2, 2, 2], vertical_alignment="bottom")
        one_of(say("edit_kind"), _ORDER, lambda each: say(f"edit_kind_{each}"), "new edit kind", place=columns[0])
        one_of(say("edit_level"), list(names), names.__getitem__, "new edit level", place=columns[1])
        columns[2].number_input(
            say("edit_number"), value=0.5, step=0.05, format="%.2f", key="new edit number", persist_state="session"
        )
        columns[3].text_input(
            say("edit_tokens"), help=say("edit_tokens_help", classes=", ".join(NAMES)), key="new edit tokens",
            persist_state="session",
        )  # fmt: skip
        columns[4].form_submit_button(say("edit_add"), width="stretch", on_click=_add, args=(trace, known))
    if known.mistake is not None:
        show_error(known.mistake)


def _add(trace: Trace, known: EditList) -> None:
    """Add the edit of the form. A mistake stays on screen until the next edit, however often the page runs."""
    kind, level = chosen_in("new edit kind"), chosen_in("new edit level") or None
    number, named = st.session_state["new edit number"], st.session_state["new edit tokens"]
    what = "" if kind == EditKind.DENSE else named if EditKind(kind).names_tokens else f"{number:g}"
    try:
        edit = Edit.parse(f"{kind} {what}@{'*' if level is None else level}")
        edit.check(kinds_in(trace.routing), trace.prompt)
    except AnalysisError as error:
        known.mistake = error
    else:
        known.change([*known.edits, edit])


def _forces(trace: Trace, known: EditList, edits: list[Edit]) -> None:
    """The list of the edits in force."""
    if not edits:
        st.caption(say("edits_none"))
        return
    st.markdown(f"**{say('edits_list')}**")
    for index, edit in enumerate(edits):
        left, right = st.columns([12, 1], vertical_alignment="center")
        left.markdown(plain(_in_words(edit, trace)))
        rest = list(known.edits)
        rest.remove(edit)
        right.button(
            "", icon=":material/close:", key=f"remove {index}", help=say("edit_remove"), on_click=known.change,
            args=(rest,),
        )  # fmt: skip
    st.button(say("edits_clear"), icon=":material/delete:", on_click=known.change, args=([],))


def _in_words(edit: Edit, trace: Trace) -> str:
    """An edit in the user's language, also where the run has no such level."""
    if edit.level is None:
        where = say("every_level")
    elif edit.level in trace.routing.levels:
        where = level_name(trace, edit.level, table(language()))
    else:
        where = say("level", n=edit.level)
    what = f" {edit.what[:_LONGEST]}{'…' if len(edit.what) > _LONGEST else ''}" if edit.what else ""
    return say("labelled", label=where, value=say(f"edit_kind_{edit.kind}") + what)


def _warnings(outcome: Outcome, known: EditList, edits: Sequence[Edit]) -> None:
    trace, untouched, words = outcome.trace, outcome.unedited.routing, table(language())
    said: dict[str, list[str]] = {}
    for level, token in outcome.absent:
        stopped = stopping_level(trace.routing, level, trace.routing.reached[:, token].tolist())
        said.setdefault(level_words(trace, stopped, words)["edit_absent"], []).append(str(token))
    for text, tokens in said.items():
        st.warning(plain(text.format(tokens=", ".join(tokens[:_NAMED]))))
    wanted = reachable(edits, outcome.absent, trace.routing)
    if wanted != list(edits):
        st.button(say("edit_reach"), on_click=known.change, args=(wanted,))
    said = {}
    for level in outcome.emptied:
        if untouched.kept[level - 1].any():
            # no branch runs in a light/heavy block that no token reaches
            own = level_words(trace, level, words) if trace.routing.reached[level - 1].any() else words
            said.setdefault(own["edit_emptied"], []).append(level_name(trace, level, words))
    for text, names in said.items():
        st.warning(text.format(levels=say("comma").join(names)))


def _next_tokens(outcome: Outcome) -> None:
    figure = debug_figures.two_distributions(outcome.next_pieces, outcome.next_probabilities, table(language()))
    plot(st, figure, "whatif next")
    st.caption(say("whatif_next", divergence=f"{outcome.divergence:.3g}"))


def _flips(outcome: Outcome) -> None:
    """Other tokens whose decision changed."""
    rows = []
    before, after = outcome.unedited.routing, outcome.trace.routing
    for level in after.levels:
        name = level_name(outcome.trace, level, table(language()))
        words = level_words(outcome.trace, level, table(language()))
        for token in np.flatnonzero(outcome.flipped[level - 1])[:_FLIPS]:
            kept = outcome.flipped[level - 1, token] > 0
            rows.append(
                {
                    say("edit_level"): name,
                    say("flip_token"): int(token),
                    say("flip_text"): quoted(str(outcome.trace.prompt.pieces[token])),
                    say("flip_before"): float(before.scores[level - 1, token]),
                    say("flip_after"): float(after.scores[level - 1, token]),
                    say("flip_now"): words["view_keptState" if kept else "view_droppedState"],
                }
            )
    count = int(np.abs(outcome.flipped).sum())
    st.markdown(f"**{say('flips', n=f'{count:,}')}**", help=say("flips_help"))
    if rows:
        forms = {say("flip_token"): ",", say("flip_before"): "+.3f", say("flip_after"): "+.3f"}
        st.dataframe(sortable(pd.DataFrame(rows), forms), hide_index=True, placeholder="–")


def _numbers(outcome: Outcome) -> None:
    """A table of the unedited and the edited run."""
    pairs: dict[str, tuple[str, str]] = {}
    agreement, likelihood = outcome.trace.agreement, outcome.trace.likelihood
    if likelihood is not None and outcome.trace.num_tokens > 1:
        untouched = likelihood.perplexity if agreement is None else agreement.perplexity
        pairs[say("number_perplexity")] = (f"{untouched:,.2f}", f"{likelihood.perplexity:,.2f}")
        divergence = 0.0 if agreement is None else float(agreement.divergence.mean())
        pairs[say("number_divergence")] = ("0.0000", f"{divergence:.4f}")
        pairs[say("number_agree")] = ("100.0%", f"{1.0 if agreement is None else agreement.agrees.mean():.1%}")
    if outcome.answer is not None:
        pairs[say("number_answer")] = (
            f"{np.exp(outcome.answer.unedited):.3%}",
            f"{np.exp(outcome.answer.edited):.3%}",
        )
    sizes = outcome.cache_bytes
    pairs[say("number_work")] = ("100.0%", f"{outcome.operations.ratio:.1%}")
    pairs[say("number_cache")] = (f"{sizes.unedited / 2**20:,.2f}", f"{sizes.edited / 2**20:,.2f}")
    rows = [{say("number_before"): a, say("number_after"): b} for a, b in pairs.values()]
    st.table(pd.DataFrame(rows, index=list(pairs)))
    st.caption(
        say(
            "whatif_time",
            share=f"{outcome.share:.0%}",
            again=f"{1000 * outcome.seconds:,.0f}",
            whole=f"{1000 * outcome.whole_seconds:,.0f}",
        )
    )


def _remember(run: Run, outcome: Outcome) -> None:
    """Add the edited run to the runs, for Side by side. This runs before the page lists them."""
    own, agreement = session(), outcome.trace.agreement
    if run.trace.likelihood is None and agreement is not None and not run.trace.provenance.edits:
        # how likely the untouched run finds the prompt was measured along with the edits
        own.remember(replace(run.trace, likelihood=Likelihood(agreement.surprisal)), run.recipe, shown=False)
    own.remember(outcome.trace, run.recipe, shown=False)
    st.toast(say("whatif_added"))


def _search(run: Run, answer: str, shown: Shown, settings: Settings) -> None:
    """The single decisions that change the answer's log-probability most."""
    own, trace = session(), run.trace
    st.subheader(say("search_title"), help=say("search_help"))
    level = level_name(trace, shown.level, table(language()))
    if trace.routing.merges[shown.level - 1]:
        st.caption(plain(say("search_merging", level=level)))
        return
    key = (trace.run, answer, shown.level)
    pressed = st.button(say("search_run", level=level, n=_MEASURED), icon=":material/search:", key="search run")
    progress = ProgressBar()
    if pressed:
        try:
            with working("search", settings, progress) as work:
                for found in engine.effects(
                    run.recipe.model, trace, answer, shown.level, _MEASURED, work, settings.limits.tokens
                ):
                    own.found["effects"] = (key, found)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    found = own.recall("effects", key)
    if found is not None:
        _effects(trace, found)


def _effects(trace: Trace, found: Effects) -> None:
    rows = []
    for index in found.order()[:_MEASURED]:
        token = int(found.tokens[index])
        flip = "drop" if found.kept[index] else "keep"
        rows.append(
            {
                say("flip_token"): token,
                say("flip_text"): quoted(str(trace.prompt.pieces[token])),
                say("search_flip"): say(f"edit_kind_{flip}"),
                say("search_exact"): found.exact[index],
                say("search_estimate"): found.estimate[index],
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    known = int((~np.isnan(found.exact)).sum())
    st.caption(say("search_note", known=known, all=f"{len(found.tokens):,}", correlation=f"{found.correlation:.2f}"))
