"""A training run, live or finished: its curves, and the routing of fixed prompts from step to step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import streamlit as st

from analysis import AnalysisError, Trace
from analysis.figures import training as training_figures
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import common_word, level_name, level_words, router_name, system_name
from analysis.training.run import Run, snapshot_trace
from app import reproduce
from app.files import Recorded, Stamp, recorded, snapshots_stamp, training_run
from app.messages import bounded, plain, plot, show_error
from app.settings import BESIDE, SHIPPED_BESIDE, SHIPPED_RUN, Settings
from app.state import session
from app.strings import language, name_of, say, table
from app.views import again
from app.views.boxes import one_of, put, several_of
from app.views.trace import levels, odd, text_and_map
from app.views.trace import pairs as beside

_SECONDS = 5  # between two looks at a run in progress
_FRAME = 1.2  # seconds per snapshot while playing


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("watch_title"))
    st.write(say("watch_intro"))
    folders = settings.runs()
    if not folders:
        st.info(say("watch_none"), icon=":material/info:")
        st.code(
            "subllm train --config assets/training/small.json --data packed --out checkpoints/run",
            language=None,
            wrap_lines=True,
        )
        return
    left, right = st.columns([2, 3])
    name = one_of(say("watch_run"), list(folders), name_of, "watched", place=left)
    possible = [other for other in folders if other != name]
    first = [other for other in possible if other in BESIDE and name == SHIPPED_RUN]
    others = several_of(say("watch_others"), possible, name_of, f"watched beside {name}", place=right, default=first)
    shown = {name_of(each): folders[each] for each in (name, *others)}
    try:
        run = training_run(folders[name])
        if run.step < run.config["steps"] and name not in SHIPPED_BESIDE.values():  # of these, some were stopped early
            st.fragment(bounded(_live), run_every=_SECONDS)(shown, _snapshots(shown))
        else:
            _curves(shown)
        _work(shown)
        if not run.snapshots:
            st.info(say("watch_no_snapshots"), icon=":material/info:")
            return
        found = recorded(folders[name])
    except AnalysisError as error:
        show_error(error)
        return
    _history(found)
    _steps(name, found)
    again.show(reproduce.watched(name, folders[name]))


def _snapshots(folders: dict[str, Path]) -> list[Stamp]:
    """A value that changes when one of the runs records another snapshot."""
    return [snapshots_stamp(folder) for folder in folders.values()]


def _live(folders: dict[str, Path], seen: list[Stamp]) -> None:
    """The curves of a run in progress; the whole page is drawn again when there is a snapshot that it does not show."""
    if _snapshots(folders) != seen:
        st.rerun()
    _curves(folders)


def _curves(folders: dict[str, Path]) -> None:
    """The curves of runs, by name; they are drawn again and again while a run is in progress."""
    try:
        _draw_curves({name: training_run(folder) for name, folder in folders.items()})
    except AnalysisError as error:
        show_error(error)


def _draw_curves(runs: dict[str, Run]) -> None:
    words = table(language())
    run = next(iter(runs.values()))
    log = run.log
    columns = st.columns([3, 2, 2, 2, 2])  # a step beside the number of steps is long
    columns[0].metric(say("watch_step"), f"{run.step:,} / {run.config['steps']:,}")
    columns[1].metric(say("watch_parameters"), f"{run.parameters / 1e6:.1f} M")
    for column, key, name, form in (
        (columns[2], "watch_loss", "loss", "{:.3f}"),
        (columns[3], "watch_held_out", "eval_loss", "{:.3f}"),
        (columns[4], "watch_speed", "tokens_per_second", "{:,.0f}"),
    ):
        known = log[name].dropna()
        column.metric(say(key), form.format(known.iloc[-1]) if len(known) else "–")
    st.caption(plain(f"{_title(run)} · {run.structure}"))
    damaged = sum(each.damaged for each in runs.values())
    if damaged:
        st.warning(say("watch_damaged", n=f"{damaged:,}"), icon=":material/warning:")
    left, right = st.columns(2)
    plot(left, training_figures.loss_curves(runs, words), "watch loss")
    for key, converted in (("watch_loss_help", False), ("watch_loss_converted", True)):
        names = [name for name, each in runs.items() if bool(each.config.get("converted")) == converted]
        if names:
            whose = plain(say("comma").join(names))
            left.caption(say(key) if len(names) == len(runs) else say("labelled", label=whose, value=say(key)))
    routers = log["router_loss"].dropna()
    if len(routers):
        factor = f"{run.model.router_loss:g}"
        left.caption(say("watch_loss_routers", loss=f"{routers.iloc[-1]:.3f}", factor=factor))
    plot(right, training_figures.speed_curves(runs, words), "watch speed")
    right.caption(say("watch_speed_help"))


def _work(folders: dict[str, Path]) -> None:
    """What runs spend of the dense model's work and what they keep, beside each other; a LLaMA spends all of it."""
    runs = {name: training_run(folder) for name, folder in folders.items()}
    histories = {name: recorded(folders[name]).history for name, run in runs.items() if run.snapshots}
    if len(histories) > 1:
        words, (left, right) = table(language()), st.columns(2)
        plot(left, training_figures.work_curves(runs, histories, words), "watch work")
        left.caption(say("watch_work_help"))
        plot(right, training_figures.kept_curves(runs, histories, words), "watch kept")
        right.caption(say("watch_kept_help"))


def _title(run: Run) -> str:
    """What is trained, in a few words."""
    words, ablation = table(language()), run.config.get("ablation")
    if ablation:
        return say("labelled", label=router_name("subllm", words), value=say(f"watch_ablation_{ablation}"))
    system = system_name([] if run.config.get("dense") else run.routers, words)
    return say("watch_converted", system=system) if run.config.get("converted") else system


def _history(found: Recorded) -> None:
    """How the routing of all prompts changed during training."""
    words, run, snapshots, history = table(language()), found.run, found.snapshots, found.history
    st.subheader(say("watch_routing"))
    st.caption(say("watch_routing_help", n=len(run.offsets), tokens=f"{len(snapshots[0].token_ids):,}"))
    first = snapshot_trace(run, snapshots[0], 0)
    names = {level: level_name(first, level, words) for level in first.routing.levels}
    labels = list(names.values())
    left, right = st.columns(2)
    retention = training_figures.level_curves(
        history, history.retention, labels, words["figure_kept_share"], run.retention_ratios, words
    )
    plot(left, retention, "watch retention")
    left.caption(common_word(first, "watch_retention_help", words, "\n\n"))
    overlap = training_figures.level_curves(history, history.to_last, labels, words["figure_overlap_last"], (), words)
    plot(right, overlap, "watch overlap")
    right.caption(say("watch_overlap_help"))
    level = one_of(say("edit_level"), list(names), names.__getitem__, "watch level")
    own, columns = level_words(first, level, words), st.columns(3)
    scores, scales = history.scores[:, level - 1], history.scales[:, level - 1]
    if first.routing.scores_tokens(level):
        thresholds = history.thresholds[:, level - 1]
        figure = training_figures.quantile_bands(history.steps, scores, own["figure_score"], thresholds, words)
        plot(columns[0], figure, "watch scores")
        columns[0].caption(own["watch_scores_help"])
    else:
        columns[0].info(plain(levels.no_scores(first, level)))
    plot(columns[1], training_figures.kind_curves(history, level, words), "watch kinds")
    columns[1].caption(own["watch_kinds_help"])
    if first.routing.bypassed[level - 1]:
        figure = training_figures.quantile_bands(history.steps, scales, words["figure_scale"], None, words)
        plot(columns[2], figure, "watch scales")
        columns[2].caption(say("watch_scales_help"))
    else:
        columns[2].info(plain(levels.no_bypass(first, level)))


def _steps(name: str, found: Recorded) -> None:
    """One prompt under a slider of steps that plays."""
    prompts = found.run.config["prompts"]
    labels = [f"{number} · {prompt[:90]}" for number, prompt in enumerate(prompts, 1)]  # no two alike
    key = f"watch prompt of {name}"  # the browser goes on showing a key's choice when the options change
    prompt = st.selectbox(say("watch_prompt"), range(len(labels)), format_func=labels.__getitem__, key=key)
    playing = st.toggle(say("watch_play"), key="watch playing")
    st.fragment(bounded(_frame), run_every=_FRAME if playing else None)(found, prompt, playing)


def _frame(found: Recorded, prompt: int, playing: bool) -> None:
    """The routing at the step of the slider; the next step at every call while it plays.

    A slider that stood at the newest step goes on to the one that was recorded since.
    """
    own, run, snapshots = session(), found.run, found.snapshots
    steps = [snapshot.step for snapshot in snapshots]
    chosen, newest = st.session_state.get("watch step"), own.recall("newest step", run.folder)
    if chosen not in steps or (chosen == newest and not playing):
        put("watch step", steps[-1])
    elif playing:
        st.session_state["watch step"] = steps[(steps.index(chosen) + 1) % len(steps)]
    own.found["newest step"] = (run.folder, steps[-1])
    left, right = st.columns(2)
    step = left.select_slider(say("watch_at"), steps, key="watch step", format_func=lambda n: f"{n:,}")
    before = right.select_slider(
        say("watch_against"), steps, value=steps[0], key="watch against", format_func=lambda n: f"{n:,}"
    )
    trace = snapshot_trace(run, snapshots[steps.index(step)], prompt)
    _view(trace)
    odd.show(trace)
    perplexity = "–" if np.isnan(trace.perplexity) else f"{trace.perplexity:,.1f}"
    st.caption(say("watch_perplexity", perplexity=perplexity))
    if not playing and before != step:
        st.markdown(f"**{say('watch_compare')}**")
        other = snapshot_trace(run, snapshots[steps.index(before)], prompt)
        beside.compare(trace, other, (trace.provenance.checkpoint, other.provenance.checkpoint))


def _view(trace: Trace) -> None:
    """Text and map. Level and colour are those of every page; the selected tokens are not, since the prompts differ."""
    own = session()
    tokens = own.recall("watched tokens", trace.prompt.text) or {"selected": None, "until": None}
    asked = Shown.parse({**own.shown, **tokens}, trace)
    shown = text_and_map.draw(trace, asked, key="watch view")
    if shown == asked:  # a look changes nothing, not even where this run has no such level or colour
        return
    own.found["watched tokens"] = (trace.prompt.text, {"selected": shown.selected, "until": shown.until})
    own.show(replace(shown, selected=asked.selected, until=asked.until), asked)
