"""A training run, live or finished: its curves, and the routing of fixed prompts from step to step."""

import numpy as np
import streamlit as st

from analysis import AnalysisError, figures, training_figures
from analysis.training import Run, load_snapshots, read_run, routing_history, snapshot_trace
from app.components.routing_view import Shown, routing_view
from app.messages import plain, plot, show_error
from app.settings import SHIPPED_BESIDE, SHIPPED_RUN, Settings
from app.strings import language, say, table
from app.views import beside, chooser
from subllm.snapshots import RoutingSnapshot

_SECONDS = 5  # between two looks at a run that goes on
_FRAME = 1.2  # seconds per snapshot while playing


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("watch_title"))
    st.write(say("watch_intro"))
    with st.sidebar:
        chooser.language_switch()
    folders = settings.runs()
    if not folders:
        st.info(say("watch_none"), icon=":material/info:")
        st.code("python -m subllm.train --config assets/training/small.json --data packed --out checkpoints/run")
        return
    left, right = st.columns([2, 3])
    name = left.selectbox(say("watch_run"), list(folders), key="watched", persist_state="session")
    possible = [other for other in folders if other != name]
    first = [other for other in possible if other == SHIPPED_BESIDE["llama"] and name == SHIPPED_RUN]
    others = right.multiselect(say("watch_others"), possible, first, key=f"watched beside {name}")
    try:
        run = read_run(folders[name])
        runs = {name: run} | {other: read_run(folders[other]) for other in others}
    except AnalysisError as error:
        show_error(error)
        return
    if run.step < run.config["steps"]:
        st.fragment(_curves, run_every=_SECONDS)({name: folders[name]} | {other: folders[other] for other in others})
    else:
        _draw_curves(runs)
    if not run.snapshots:
        st.info(say("watch_no_snapshots"), icon=":material/info:")
        return
    try:
        snapshots = load_snapshots(run)
    except AnalysisError as error:
        show_error(error)
        return
    _history(run, snapshots)
    _steps(name, run, snapshots)


def _curves(folders: dict) -> None:  # type: ignore[type-arg]
    """The curves of a run that goes on, read again and again."""
    try:
        _draw_curves({name: read_run(folder) for name, folder in folders.items()})
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
    st.caption(plain(f"{run.title} · {run.structure}"))
    left, right = st.columns(2)
    plot(left, training_figures.loss_curves(runs, words), "watch loss")
    left.caption(say("watch_loss_converted" if run.config.get("converted") else "watch_loss_help"))
    plot(right, training_figures.speed_curves(runs, words), "watch speed")
    right.caption(say("watch_speed_help"))


def _history(run: Run, snapshots: list[RoutingSnapshot]) -> None:
    """How the routing of all prompts changed."""
    words = table(language())
    st.subheader(say("watch_routing"))
    st.caption(say("watch_routing_help", n=len(run.offsets), tokens=f"{len(snapshots[0].token_ids):,}"))
    history = routing_history(run, snapshots)
    first = snapshot_trace(run, snapshots[0], 0)
    names = [figures.level_name(first, span, words) for span in range(first.num_spans)]
    left, right = st.columns(2)
    retention = training_figures.level_curves(
        history, history.retention, names, words["figure_kept_share"], run.retention_ratios, words
    )
    plot(left, retention, "watch retention")
    left.caption(say("watch_retention_help"))
    overlap = training_figures.level_curves(history, history.to_last, names, words["figure_overlap_last"], (), words)
    plot(right, overlap, "watch overlap")
    right.caption(say("watch_overlap_help"))
    span = st.selectbox(say("edit_level"), range(len(names)), format_func=names.__getitem__, key="watch level")
    columns = st.columns(3)
    scores = training_figures.quantile_bands(history.steps, history.scores[:, span], words["figure_score"], 0.0, words)
    plot(columns[0], scores, "watch scores")
    plot(columns[1], training_figures.kind_curves(history, span, words), "watch kinds")
    scales = training_figures.quantile_bands(history.steps, history.scales[:, span], words["figure_scale"], None, words)
    plot(columns[2], scales, "watch scales")
    for column, key in zip(columns, ("watch_scores_help", "watch_kinds_help", "watch_scales_help"), strict=True):
        column.caption(say(key))


def _steps(name: str, run: Run, snapshots: list[RoutingSnapshot]) -> None:
    """One prompt under a slider of steps that plays."""
    prompts = run.config["prompts"]
    labels = [f"{number} · {prompt[:90]}" for number, prompt in enumerate(prompts, 1)]  # no two alike
    key = f"watch prompt of {name}"  # the browser goes on showing a key's choice when the options change
    prompt = st.selectbox(say("watch_prompt"), range(len(labels)), format_func=labels.__getitem__, key=key)
    playing = st.toggle(say("watch_play"), key="watch playing")
    st.fragment(_frame, run_every=_FRAME if playing else None)(run, snapshots, prompt, playing)


def _frame(run: Run, snapshots: list[RoutingSnapshot], prompt: int, playing: bool) -> None:
    """The routing at the step of the slider; the next step at every call while it plays."""
    steps = [snapshot.step for snapshot in snapshots]
    if st.session_state.get("watch step") not in steps:
        st.session_state["watch step"] = steps[-1]
    elif playing:
        place = steps.index(st.session_state["watch step"])
        st.session_state["watch step"] = steps[(place + 1) % len(steps)]
    left, right = st.columns(2)
    step = left.select_slider(say("watch_at"), steps, key="watch step", format_func=lambda n: f"{n:,}")
    before = right.select_slider(say("watch_against"), steps, value=steps[0], format_func=lambda n: f"{n:,}")
    shown = st.session_state.setdefault("watch shown", Shown())
    trace = snapshot_trace(run, snapshots[steps.index(step)], prompt)
    shown = routing_view(trace, Shown.parse(vars(shown), trace), table(language()), key="watch view")
    st.session_state["watch shown"] = shown
    perplexity = "–" if np.isnan(trace.perplexity) else f"{trace.perplexity:,.1f}"
    st.caption(say("watch_perplexity", perplexity=perplexity))
    if not playing and before != step:
        st.markdown(f"**{say('watch_compare')}**")
        beside.compare(trace, snapshot_trace(run, snapshots[steps.index(before)], prompt))
