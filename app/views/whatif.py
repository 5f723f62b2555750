"""What if: tokens forced to be kept or dropped, thresholds moved, levels switched off, and what that changes."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace, debug_figures, figures
from analysis.edits import CLASSES, EVERY, Edit, check, parse_edits, ranges, without
from analysis.intervene import Ground, Outcome, reachable
from analysis.prompt import decode_pieces
from analysis.record import Progress
from analysis.search import Effects
from app import runs
from app.components.routing_view import Shown, routing_view
from app.messages import ProgressBar, plain, plot, show_error
from app.settings import Settings, checkpoint_option
from app.strings import language, say, table
from app.views import history, link
from subllm import SubllmError
from subllm.structure import parse_structure

_MEASURED = 16  # candidates of a search
_NAMED = 12  # edits or tokens that a message names
_LONGEST = 200  # characters of an edit's tokens in the list
_NUMBERS = ("threshold", "retention", "bypass")


def open_link(fields: Mapping[str, str]) -> None:
    """Put into force what a link says.

    Args:
        fields: of the link.
    """
    st.session_state["answer"] = fields.get("answer", "")
    try:
        st.session_state["edits"] = parse_edits(fields.get("edits", ""))
    except AnalysisError as error:
        st.session_state["edits unread"] = str(error)


def in_force(trace: Trace) -> list[Edit]:
    """Those of the session's edits that fit a run; edits stay when another run is chosen, and may not fit that.

    Args:
        trace: of the run.
    """
    return [edit for edit in st.session_state.get("edits", []) if _fits(edit, trace)]


def _fits(edit: Edit, trace: Trace) -> bool:
    try:
        check([edit], trace.num_spans, trace.num_tokens)
    except AnalysisError:
        return False
    return True


def show(trace: Trace, source: runs.Source, settings: Settings) -> None:
    """The tab.

    Args:
        trace: of the prompt.
        source: of the trace.
        settings: what the operator allows.
    """
    st.session_state.setdefault("edits", [])
    edits = in_force(trace)
    with st.container():  # always there: what stands below must keep its place
        _refused(trace, edits)
    if not trace.num_spans:
        st.info(say("whatif_no_levels"))
        link.write(source, {})
        return
    words = table(language())
    answer = st.text_input(say("answer"), key="answer", help=say("answer_help"), persist_state="session")
    progress, shown_place = ProgressBar(), st.container()
    before = Shown.parse(st.session_state.get("whatif shown"), trace)
    try:
        with progress:
            known = st.session_state.get("ground")
            ground = runs.ground_of(source, trace, answer, known, progress, settings.max_tokens)
            st.session_state["ground"] = ground
            stages = _stages(ground, edits, progress)
            outcome, _ = next(stages)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        _forces(trace, edits)
        return
    with shown_place:
        st.caption(say("whatif_help"))
        now = _with_arrays(trace, outcome.arrays)
        shown = routing_view(now, before, words, key="whatif")
        st.session_state["whatif shown"] = vars(shown)
    _controls(trace, shown)
    _forces(trace, edits)
    _warnings(outcome, trace, edits)
    judged: dict[str, np.ndarray] = {}
    with st.container():
        _next_tokens(outcome, source)
        _flips(outcome, trace)
    progress.move()  # nothing above moves while the numbers at every position wait their turn
    for outcome, judged in stages:
        progress.clear()
        _numbers(ground, outcome, judged)
    if judged and edits:
        plot(
            st,
            debug_figures.by_position(trace, judged["divergence"], say("divergence")),
            "whatif divergence",
        )
        st.caption(say("divergence_help"))
        if st.button(say("whatif_add"), icon=":material/compare:", help=say("whatif_add_help")):
            _remember(trace, now, judged, edits, source)
    _search(trace, ground, shown)
    if link.carries(source):
        _command(source, edits, answer)
    link.write(source, {"edits": ";".join(map(str, edits))} | ({"answer": answer} if answer else {}))


def _refused(trace: Trace, fitting: list[Edit]) -> None:
    """Say which edits are not in force, and offer to remove them."""
    unread = st.session_state.get("edits unread")
    unfit = [edit for edit in st.session_state["edits"] if edit not in fitting]
    if unread:
        st.error(plain(say("edits_unread", why=unread)), icon=":material/error:")
    if unfit:
        named = "; ".join(_in_words(edit, trace) for edit in unfit[:_NAMED])
        named += "; …" if len(unfit) > _NAMED else ""
        last = f"{trace.num_tokens - 1:,}"
        st.error(plain(say("edits_unfit", edits=named, levels=trace.num_spans, last=last)), icon=":material/error:")
    if unread or unfit:
        st.button(say("edits_refused_remove"), icon=":material/delete:", on_click=_remove_refused, args=(fitting,))


def _remove_refused(fitting: list[Edit]) -> None:
    st.session_state.pop("edits unread", None)
    if st.session_state["edits"] != fitting:
        _change(fitting)


def _stages(ground: Ground, edits: list[Edit], progress: Progress) -> Iterator[tuple[Outcome, dict[str, np.ndarray]]]:
    """What `runs.edited` yields; known already if only the selection has changed."""
    before, same, known = st.session_state.get("outcome", (None, None, []))
    if before is ground and same == edits and len(known) == 2:
        yield from known
        return
    found: list[tuple[Outcome, dict[str, np.ndarray]]] = []
    st.session_state["outcome"] = (ground, list(edits), found)
    for stage in runs.edited(ground, edits, progress):
        found.append(stage)
        yield stage


def _with_arrays(trace: Trace, arrays: dict[str, Any]) -> Trace:
    return replace(trace, **arrays)


def _change(edits: list[Edit]) -> None:
    """New edits in force, with the old ones to go back to."""
    st.session_state.pop("edit mistake", None)
    st.session_state.setdefault("edits before", []).append(st.session_state["edits"])
    st.session_state["edits after"] = []
    st.session_state["edits"] = edits


def _controls(trace: Trace, shown: Shown) -> None:
    """Buttons for the selected tokens, and a line to write any edit."""
    edits: list[Edit] = st.session_state["edits"]
    tokens, words = shown.tokens, table(language())
    columns = st.columns([3, 2, 2, 2, 1, 1], vertical_alignment="bottom")
    names = {span: figures.level_name(trace, span, words) for span in range(trace.num_spans)}
    names[EVERY] = say("every_level")
    span = columns[0].selectbox(
        say("edit_level"), list(names), index=shown.level, format_func=names.__getitem__,
        key=f"edit level {shown.level}",
    )  # fmt: skip
    rest = without(edits, tokens, span)
    for column, kind, icon in ((columns[1], "keep", "add_circle"), (columns[2], "drop", "do_not_disturb_on")):
        column.button(
            say(f"edit_{kind}", n=len(tokens)), key=f"edit {kind}", icon=f":material/{icon}:", width="stretch",
            disabled=not tokens, on_click=_change, args=([*rest, Edit(kind, span, tokens)],),
        )  # fmt: skip
    columns[3].button(
        say("edit_leave"), key="edit leave", width="stretch", disabled=rest == edits, on_click=_change, args=(rest,)
    )
    undone: list[list[Edit]] = st.session_state.get("edits before", [])
    redone: list[list[Edit]] = st.session_state.get("edits after", [])
    columns[4].button("", icon=":material/undo:", help=say("undo"), key="undo", disabled=not undone, on_click=_undo)
    columns[5].button("", icon=":material/redo:", help=say("redo"), key="redo", disabled=not redone, on_click=_redo)
    with st.form("number edit", border=False):
        columns = st.columns([3, 2, 2, 2, 2], vertical_alignment="bottom")
        kinds = [*_NUMBERS, "dense", "keep", "drop"]
        columns[0].selectbox(
            say("edit_kind"), kinds, format_func=lambda each: say(f"edit_kind_{each}"), key="new edit kind"
        )
        columns[1].selectbox(say("edit_level"), list(names), format_func=names.__getitem__, key="new edit level")
        columns[2].number_input(say("edit_number"), value=0.5, step=0.05, format="%.2f", key="new edit number")
        columns[3].text_input(
            say("edit_tokens"), help=say("edit_tokens_help", classes=", ".join(CLASSES)), key="new edit tokens"
        )
        columns[4].form_submit_button(say("edit_add"), width="stretch", on_click=_add, args=(trace,))
    if "edit mistake" in st.session_state:
        show_error(st.session_state["edit mistake"])


def _add(trace: Trace) -> None:
    """The edit of the form; a mistake stays on screen until the next edit, however often the page runs."""
    kind, where, number, named = (
        st.session_state[f"new edit {name}"] for name in ("kind", "level", "number", "tokens")
    )
    at = "*" if where == EVERY else str(where)
    what = "" if kind == "dense" else named if kind in ("keep", "drop") else f"{number:g}"
    try:
        edit = Edit.parse(f"{kind} {what}@{at}", trace.prompt, trace.starts.tolist(), trace.ends.tolist())
    except AnalysisError as error:
        st.session_state["edit mistake"] = error
    else:
        _change([*st.session_state["edits"], edit])


def _undo() -> None:
    st.session_state.setdefault("edits after", []).append(st.session_state["edits"])
    st.session_state["edits"] = st.session_state["edits before"].pop()


def _redo() -> None:
    st.session_state.setdefault("edits before", []).append(st.session_state["edits"])
    st.session_state["edits"] = st.session_state["edits after"].pop()


def _forces(trace: Trace, edits: list[Edit]) -> None:
    """The list of the edits in force."""
    if not edits:
        st.caption(say("edits_none"))
        return
    st.markdown(f"**{say('edits_list')}**")
    for index, edit in enumerate(edits):
        left, right = st.columns([12, 1], vertical_alignment="center")
        left.markdown(plain(_in_words(edit, trace)))
        right.button(
            "", icon=":material/close:", key=f"remove {index}", help=say("edit_remove"), on_click=_remove, args=(edit,)
        )
    st.button(say("edits_clear"), icon=":material/delete:", on_click=_change, args=([],))


def _remove(edit: Edit) -> None:
    rest = list(st.session_state["edits"])
    rest.remove(edit)
    _change(rest)


def _in_words(edit: Edit, trace: Trace) -> str:
    """An edit in the user's language, also where the run has no such level."""
    if edit.span == EVERY:
        where = say("every_level")
    elif edit.span < trace.num_spans:
        where = figures.level_name(trace, edit.span, table(language()))
    else:
        where = say("level", n=edit.span + 1)
    named = ranges(edit.tokens)
    what = f" {named[:_LONGEST]}{'…' if len(named) > _LONGEST else ''}" if named else ""
    number = "" if named or edit.kind == "dense" else f" {edit.value:g}"
    return f"{where}: {say(f'edit_kind_{edit.kind}')}{what}{number}"


def _command(source: runs.Source, edits: Sequence[Edit], answer: str) -> None:
    """What does the same without a browser."""
    parts = [f"python -m analysis.intervene{checkpoint_option(source.choice)}"]
    parts += ["--prompt", shlex.quote(source.text), *(["--chat"] if source.chat else [])]
    parts += ["--answer", shlex.quote(answer)] if answer else []
    for edit in edits:
        form = str(edit).removeprefix(f"{edit.kind} ").removeprefix("dense@")
        parts += [f"--{edit.kind}", shlex.quote(form)]
    st.code(" ".join(parts), language="bash", wrap_lines=True)


def _warnings(outcome: Outcome, trace: Trace, edits: Sequence[Edit]) -> None:
    words = table(language())
    if outcome.absent:
        cells = ", ".join(str(token) for _, token in outcome.absent[:_NAMED])
        st.warning(plain(say("edit_absent", tokens=cells)))
        parents = [span.parent for span in parse_structure(trace.provenance.structure).spans]
        st.button(say("edit_reach"), on_click=_change, args=(reachable(edits, outcome.absent, parents),))
    emptied = [figures.level_name(trace, span, words) for span in outcome.emptied if trace.kept[span].any()]
    if emptied:
        st.warning(say("edit_emptied", levels=", ".join(emptied)))


def _next_tokens(outcome: Outcome, source: runs.Source) -> None:
    checkpoint, _ = source.load()
    pieces = decode_pieces(outcome.next_ids, checkpoint.tokenizer)
    plot(st, debug_figures.two_distributions(pieces, outcome.next_probabilities, table(language())), "whatif next")
    st.caption(say("whatif_next", divergence=f"{outcome.divergence:.3g}"))


def _flips(outcome: Outcome, trace: Trace) -> None:
    """Other tokens whose decision changed."""
    rows = []
    for span in range(trace.num_spans):
        for token in np.flatnonzero(outcome.flipped[span])[:50]:
            rows.append(
                {
                    say("edit_level"): figures.level_name(trace, span, table(language())),
                    say("flip_token"): int(token),
                    say("flip_text"): trace.pieces[token],
                    say("flip_before"): _score(trace.scores[span, token]),
                    say("flip_after"): _score(outcome.arrays["scores"][span, token]),
                    say("flip_now"): say("view_keptState" if outcome.flipped[span, token] > 0 else "view_droppedState"),
                }
            )
    count = int(np.abs(outcome.flipped).sum())
    st.markdown(f"**{say('flips', n=f'{count:,}')}**", help=say("flips_help"))
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def _score(score: float) -> str:
    return "–" if np.isnan(score) else f"{score:+.3f}"


def _numbers(ground: Ground, outcome: Outcome, judged: dict[str, np.ndarray]) -> None:
    """Untouched and edited, in a table."""
    pairs: dict[str, tuple[str, str]] = {}
    if judged and ground.num_tokens > 1:
        both = [float(np.exp(np.nanmean(judged[name]))) for name in ("dense_surprisal", "surprisal")]
        pairs[say("number_perplexity")] = (f"{both[0]:.3f}", f"{both[1]:.3f}")
        pairs[say("number_divergence")] = ("0", f"{np.nanmean(judged['divergence']):.4f}")
        pairs[say("number_agree")] = ("100%", f"{judged['agrees'].mean():.1%}")
    if ground.answer:
        logs = outcome.answer
        pairs[say("number_answer")] = (f"{np.exp(logs[0]):.3%}", f"{np.exp(logs[1]):.3%}")
    operations = outcome.operations
    pairs[say("number_work")] = ("100%", f"{operations[1] / operations[0]:.1%}")
    pairs[say("number_cache")] = tuple(f"{size / 2**20:,.3f}" for size in outcome.cache_bytes)  # type: ignore[assignment]
    rows = [{say("number_before"): a, say("number_after"): b} for a, b in pairs.values()]
    st.table(pd.DataFrame(rows, index=list(pairs)))
    st.caption(
        say(
            "whatif_time",
            share=f"{outcome.share:.0%}",
            again=f"{1000 * outcome.seconds:,.0f}",
            whole=f"{1000 * ground.seconds:,.0f}",
        )
    )


def _remember(
    trace: Trace, now: Trace, judged: dict[str, np.ndarray], edits: Sequence[Edit], source: runs.Source
) -> None:
    """Keep the edited run among the traces, to be looked at side by side."""
    name = f"{now.provenance.checkpoint} [{'; '.join(map(str, edits))}]"
    edited = replace(
        now, divergence=judged["divergence"], agrees=judged["agrees"], surprisal=judged["surprisal"],
        provenance=replace(now.provenance, checkpoint=name), cost=None, dense_cost=None,
    )  # fmt: skip
    if np.isnan(trace.perplexity):  # it was measured along with the edits
        history.remember(replace(trace, surprisal=judged["dense_surprisal"]), source, shown=False)
    history.remember(edited, source, shown=False)
    st.toast(say("whatif_added"))


def _search(trace: Trace, ground: Ground, shown: Shown) -> None:
    """Which single decision moves the answer most."""
    words = table(language())
    st.subheader(say("search_title"), help=say("search_help"))
    level = figures.level_name(trace, shown.level, words)
    if st.button(say("search_run", level=level, n=_MEASURED), icon=":material/search:"):
        try:
            with ProgressBar("stop search") as progress:
                for found in runs.effects(ground, shown.level, _MEASURED, progress):
                    st.session_state["effects"] = (trace.digest, found)
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    digest, found = st.session_state.get("effects", (None, None))
    if digest != trace.digest or found is None:
        return
    _effects(trace, found)


def _effects(trace: Trace, found: Effects) -> None:
    rows = []
    for index in found.order()[:_MEASURED]:
        token = int(found.tokens[index])
        flip = "drop" if trace.kept[found.span, token] else "keep"
        rows.append(
            {
                say("flip_token"): token,
                say("flip_text"): trace.pieces[token],
                say("search_flip"): say(f"edit_kind_{flip}"),
                say("search_exact"): found.exact[index],
                say("search_estimate"): found.estimate[index],
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    known = int((~np.isnan(found.exact)).sum())
    st.caption(say("search_note", known=known, all=f"{len(found.tokens):,}", correlation=f"{found.correlation:.2f}"))
