"""One prompt through one checkpoint: which tokens were kept, why, and what that saved."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace, figures
from analysis.record import RunOptions
from analysis.statistics import rule_overlap
from app import runs
from app.components.routing_view import Shown, routing_view
from app.messages import plain, show_error
from app.settings import Settings
from app.strings import LANGUAGES, language, say, table
from app.views import costs
from subllm import PromptTooLongError, SubllmError

_PROMPTS = Path(__file__).parents[2] / "assets" / "prompts.json"
_LONGEST_LINK = 600  # characters of a prompt that a link carries
_EARLIER = 8


def show() -> None:
    """The page."""
    settings = Settings.read()
    linked = _read_link()
    st.title(say("title"))
    st.write(say("intro"))
    choice, device, dtype, options = _sidebar(settings)
    text, chat, pressed = _prompt_form()
    message = st.container()  # stays above the results
    arguments = (settings, choice, device, dtype, options, text, chat)
    if pressed or linked:
        st.session_state["too_long"] = None
        with message:
            _run(*arguments, truncate=False)
    if too_long := st.session_state.get("too_long"):
        with message:
            show_error(too_long)
            if st.button(say("cut", limit=f"{too_long.limit:,}")):
                st.session_state["too_long"] = None
                if _run(*arguments, truncate=True):
                    st.rerun()  # without the message
    trace = _chosen_trace()
    if trace is None:
        st.info(say("nothing_yet"), icon=":material/info:")
        return
    _results(trace)


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
    prompt, chat, checkpoint = st.session_state["sources"][trace.digest][:3]
    if not prompt or len(prompt) > _LONGEST_LINK:
        st.query_params.from_dict({"lang": language()})
        return
    fields = {"checkpoint": checkpoint, "prompt": prompt, "chat": int(chat), "lang": language()}
    fields |= {"level": shown.level, "selected": shown.selected, "colour": shown.colour}
    st.query_params.from_dict({key: str(value) for key, value in fields.items()})


def _sidebar(settings: Settings) -> tuple[str, str, str, RunOptions]:
    choices = settings.choices()
    with st.sidebar:
        if st.session_state.get("checkpoint") not in (None, *choices):
            choices.append(st.session_state["checkpoint"])  # typed, or from a link
        choice = st.selectbox(
            say("checkpoint"), choices, key="checkpoint", accept_new_options=True, help=say("checkpoint_help")
        )
        device = st.selectbox(say("device"), runs.devices(), help=say("device_help"))
        dtype = st.selectbox(say("dtype"), runs.dtypes(device), help=say("dtype_help"))
        new_tokens = st.slider(say("new_tokens"), 0, 200, 40)
        compare = st.toggle(say("compare"), value=True, help=say("compare_help"))
        st.selectbox(
            say("language"),
            list(LANGUAGES),
            index=list(LANGUAGES).index(language()),
            format_func=LANGUAGES.__getitem__,
            key="language",
        )
    return choice or choices[0], device, dtype, RunOptions(new_tokens, compare, settings.max_seconds)


def _prompt_form() -> tuple[str, bool, bool]:
    examples = {entry["name"]: entry for entry in json.loads(_PROMPTS.read_text(encoding="utf-8"))}
    if "prompt" not in st.session_state:
        first = next(iter(examples.values()))
        st.session_state["prompt"], st.session_state["chat"] = first["text"], first["chat"]
        st.session_state["example"] = first["name"]

    def fill() -> None:
        entry = examples.get(st.session_state["example"])
        if entry:
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]

    names = {name: entry.get(language(), name) for name, entry in examples.items()}
    st.pills(say("examples"), list(examples), key="example", on_change=fill, format_func=names.__getitem__)
    text = st.text_area(say("prompt"), key="prompt", height=140)
    left, right = st.columns([1, 4], vertical_alignment="center")
    pressed = left.button(say("run"), type="primary", width="stretch", icon=":material/play_arrow:")
    chat = right.toggle(say("chat"), key="chat")
    return text, chat, pressed


def _run(
    settings: Settings,
    choice: str,
    device: str,
    dtype: str,
    options: RunOptions,
    text: str,
    chat: bool,
    *,
    truncate: bool,
) -> bool:
    """Make the trace; on failure say why, and leave the last one on screen."""
    bar = st.progress(0.0, say("starting"))

    def progress(share: float, doing: str) -> None:
        bar.progress(min(max(share, 0.0), 1.0), plain(doing))

    try:
        folder = settings.locate(choice, progress)
        progress(0.0, say("loading"))
        checkpoint, dense = runs.load(folder, device, dtype)
        limit = settings.max_tokens
        trace = runs.run(checkpoint, dense, choice, text, options, progress, chat=chat, truncate=truncate, limit=limit)
    except PromptTooLongError as error:
        st.session_state["too_long"] = error
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    else:
        earlier = [other for other in st.session_state.get("traces", []) if other.digest != trace.digest]
        st.session_state["traces"] = [trace, *earlier][:_EARLIER]
        st.session_state.setdefault("sources", {})[trace.digest] = (text, chat, choice, folder, device, dtype)
        st.session_state.pop("earlier", None)  # show the new one
        return True
    finally:
        bar.empty()
    return False


def _chosen_trace() -> Trace | None:
    """The trace to show: the last one, or one of the earlier ones if the user wants that."""
    traces: list[Trace] = st.session_state.get("traces", [])
    if len(traces) < 2:
        return traces[0] if traces else None
    names = {trace.digest: f"{trace.prompt.strip()[:60]!r} · {trace.provenance.checkpoint}" for trace in traces}
    chosen = st.selectbox(say("earlier"), list(names), format_func=names.__getitem__, key="earlier")
    return next((trace for trace in traces if trace.digest == chosen), traces[0])


@st.fragment
def _results(trace: Trace) -> None:
    words, where = table(language()), trace.provenance
    st.subheader(say("read"))
    st.caption(plain(f"{where.checkpoint} · {where.structure} · {where.device} · {where.dtype} · {where.attention}"))
    costs.headline(trace)
    before = Shown.parse(st.session_state.get("shown"), trace)
    shown = routing_view(trace, before, words, key="routing")
    st.session_state["shown"] = vars(shown)
    _write_link(trace, shown)
    st.subheader(say("depth"))
    _depth(trace, shown)
    st.subheader(say("say"))
    _continuation(trace)
    st.subheader(say("costs"))
    costs.table(trace)
    if trace.num_spans:
        st.subheader(say("by_level"))
        _levels(trace, shown)
    file = io.BytesIO()
    trace.save(file)
    st.download_button(say("save"), file.getvalue(), "trace.npz", icon=":material/download:", on_click="ignore")


def _levels(trace: Trace, shown: Shown) -> None:
    words, span = table(language()), shown.level
    st.caption(say("level_here", level=figures.level_name(trace, span, words)))
    names = ("tab_scores", "tab_positions", "tab_bypass", "tab_runs", "tab_scales")
    scores, positions, bypass, runs_tab, scales = st.tabs([say(name) for name in names])
    _plot(scores, figures.score_histogram(trace, span, words), "histogram")
    rules = rule_overlap(trace, span)
    scores.caption(
        say(
            "rules",
            threshold=f"{rules.by_threshold:,}",
            share=f"{trace.retention_ratios[span]:.0%}",
            rank=f"{rules.by_rank:,}",
            overlap=f"{rules.overlap:.0%}",
            differing=f"{len(rules.differing):,}",
        )
    )
    _plot(positions, figures.score_by_position(trace, span, words, shown.selected), "positions")
    _plot(bypass, figures.bypass_contribution(trace, span, words, shown.selected), "bypass")
    bypass.caption(say("bypass_help"))
    _plot(runs_tab, figures.kept_runs(trace, span, words), "runs")
    _plot(scales, figures.bypass_scales(trace, words), "scales")
    scales.caption(say("scales_help"))
    left, right = st.columns(2)
    left.markdown(f"**{say('retention')}**")
    _plot(left, figures.retention(trace, words), "retention")
    right.markdown(f"**{say('blocks')}**")
    _plot(right, figures.tokens_per_block(trace, words), "blocks")


def _depth(trace: Trace, shown: Shown) -> None:
    """One token in depth, on demand: it needs the model once more."""
    if shown.selected < 0:
        st.caption(say("depth_hint"))
        return
    key = (trace.digest, shown.selected)
    folder, device, dtype = st.session_state["sources"][trace.digest][3:]
    if st.button(say("depth_run", n=shown.selected), icon=":material/vertical_align_center:"):
        with st.spinner(say("loading")):
            checkpoint, _ = runs.load(folder, device, dtype)
            st.session_state["lens"] = (key, *runs.follow(checkpoint, trace, shown.selected))
    if st.session_state.get("lens", (None,))[0] != key:
        return
    _, found, pieces = st.session_state["lens"]
    words = table(language())
    left, right = st.columns(2)
    _plot(left, figures.lens(found, pieces, words), "lens")
    left.caption(say("depth_help"))
    _plot(right, figures.contribution_histogram(trace, found, words), "channels")
    right.caption(say("depth_channels"))


def _plot(where: Any, figure: Any, key: str) -> None:
    where.plotly_chart(figure, key=key, config={"displayModeBar": False})


def _continuation(trace: Trace) -> None:
    words = table(language())
    left, right = st.columns(2)
    with left:
        st.caption(say("next_tokens"))
        columns = {
            say("token"): [repr(str(p)) for p in trace.next_pieces],
            say("probability"): trace.next_probabilities,
        }
        bar = st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
        st.dataframe(pd.DataFrame(columns), hide_index=True, height="content", column_config={say("probability"): bar})
    with right:
        st.caption(say("continuation", n=len(trace.new_ids)))
        st.text(trace.continuation or say("ends_here"))
        if trace.num_spans and len(trace.new_ids):
            kept = [
                f"{figures.level_name(trace, s, words)}: {(row > 0).sum()}" for s, row in enumerate(trace.new_scores)
            ]
            st.caption(say("new_kept", n=len(trace.new_ids)) + " " + ", ".join(kept))
