"""One prompt through one checkpoint: which tokens were kept, why, and what that saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Cost, Trace, figures
from analysis.record import RunOptions
from app import runs
from app.components.routing_view import routing_view
from app.messages import plain, show_error
from app.settings import Settings
from subllm import PromptTooLongError, SubllmError

_PROMPTS = Path(__file__).parents[2] / "assets" / "prompts.json"
_OWN = "Your own"


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title("What does this LLM drop?")
    st.write(
        "A SUBLLM sends only the important tokens of your prompt through its middle layers. "
        "Run a prompt to see which ones it kept at each level, with which score, and what that saved."
    )
    choice, device, dtype, options = _sidebar(settings)
    text, chat, pressed = _prompt_form()
    if pressed:
        st.session_state["too_long"] = None
        _run(settings, choice, device, dtype, options, text, chat=chat, truncate=False)
    if too_long := st.session_state.get("too_long"):
        show_error(too_long)
        if st.button(f"Cut it to the first {too_long.limit:,} tokens and run"):
            st.session_state["too_long"] = None
            if _run(settings, choice, device, dtype, options, text, chat=chat, truncate=True):
                st.rerun()  # without the message
    trace: Trace | None = st.session_state.get("trace")
    if trace is None:
        st.info("Nothing has run yet: choose an example or type a prompt, then press Run.", icon=":material/info:")
        return
    _results(trace)


def _sidebar(settings: Settings) -> tuple[str, str, str, RunOptions]:
    with st.sidebar:
        st.header("Checkpoint")
        choice = st.selectbox(
            "Checkpoint",
            settings.choices(),
            key="checkpoint",
            label_visibility="collapsed",
            accept_new_options=True,
            help="The demo, a folder below the configured roots (type its path), or an allowed name on the hub.",
        )
        device = st.selectbox("Device", runs.devices(), help="Picked automatically: a GPU if there is one.")
        dtype = st.selectbox(
            "Number format", runs.dtypes(device), help="float32 is exact; bfloat16 is faster where the device has it."
        )
        st.header("Run")
        new_tokens = st.slider("New tokens to generate", 0, 200, 40)
        compare = st.toggle(
            "Measure against the dense model",
            value=True,
            help="Reads the prompt several more times, with the SUBLLM and with the dense LLaMA in turn.",
        )
    return choice or settings.choices()[0], device, dtype, RunOptions(new_tokens, compare, settings.max_seconds)


def _prompt_form() -> tuple[str, bool, bool]:
    examples = {entry["name"]: entry for entry in json.loads(_PROMPTS.read_text())}
    if "prompt" not in st.session_state:
        first = next(iter(examples.values()))
        st.session_state["prompt"], st.session_state["chat"] = first["text"], first["chat"]

    def fill() -> None:
        entry = examples.get(st.session_state["example"])
        if entry:
            st.session_state["prompt"], st.session_state["chat"] = entry["text"], entry["chat"]

    st.pills("Examples", list(examples), default=next(iter(examples)), key="example", on_change=fill)
    text = st.text_area("Prompt", key="prompt", height=140)
    left, right = st.columns([1, 4], vertical_alignment="center")
    pressed = left.button("Run", type="primary", width="stretch", icon=":material/play_arrow:")
    chat = right.toggle("As a chat message, in the model's template", key="chat")
    return text, chat, pressed


def _run(
    settings: Settings,
    choice: str,
    device: str,
    dtype: str,
    options: RunOptions,
    text: str,
    *,
    chat: bool,
    truncate: bool,
) -> bool:
    """Make the trace; on failure say why, and leave the last one on screen."""
    bar = st.progress(0.0, "Starting")

    def progress(share: float, doing: str) -> None:
        bar.progress(min(max(share, 0.0), 1.0), plain(doing))

    try:
        folder = settings.locate(choice, progress)
        progress(0.0, "Loading the checkpoint")
        checkpoint, dense = runs.load(folder, device, dtype)
        st.session_state["trace"] = runs.run(
            checkpoint, dense, choice, text, options, progress, chat=chat, truncate=truncate, limit=settings.max_tokens
        )
    except PromptTooLongError as error:
        st.session_state["too_long"] = error
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    else:
        return True
    finally:
        bar.empty()
    return False


def _results(trace: Trace) -> None:
    where = trace.provenance
    st.subheader("The prompt as the model read it")
    st.caption(plain(f"{where.checkpoint} · {where.structure} · {where.device} · {where.dtype} · {where.attention}"))
    _headline(trace)
    routing_view(trace, key="routing")
    for title, draw in (("What it would say", _continuation), ("Time and memory", _costs)):
        st.subheader(title)
        draw(trace)
    if not trace.num_spans:
        return
    st.subheader("Level by level")
    span = 0
    if trace.num_spans > 1:
        names = [figures.level_name(trace, index) for index in range(trace.num_spans)]
        picked = st.segmented_control("Level", names, default=names[0], key="level", required=True)
        span = names.index(picked) if picked in names else 0
    scores, position, bypass = st.tabs(["Scores and threshold", "Scores along the prompt", "Bypass contribution"])
    for tab, figure in ((scores, figures.score_histogram), (position, figures.score_by_position)):
        _plot(tab, figure(trace, span), figure.__name__)
    _plot(bypass, figures.bypass_contribution(trace, span), "bypass")
    bypass.caption(
        "How far the level moved each token, relative to what was there before. Dropped tokens move by zero."
    )
    left, right = st.columns(2)
    left.markdown("**Actual against nominal retention**")
    _plot(left, figures.retention(trace), "retention")
    right.markdown("**Tokens processed by each block**")
    _plot(right, figures.tokens_per_block(trace), "blocks")


def _plot(where: Any, figure: Any, key: str) -> None:
    where.plotly_chart(figure, key=key, config={"displayModeBar": False})


def _headline(trace: Trace) -> None:
    cells: list[tuple[str, str, str]] = [("Prompt", f"{trace.num_tokens:,} tokens", "")]
    for span in range(trace.num_spans):
        nominal = f"nominal {trace.retention_ratios[span]:.0%}"
        cells.append((f"{figures.level_name(trace, span)} keeps", f"{trace.retention[span]:.0%}", nominal))
    work = trace.block_tokens.sum() / max(trace.num_blocks * trace.num_tokens, 1)
    cells.append(("Tokens × blocks computed", f"{work:.0%}", "of the dense model"))
    if trace.cost and trace.dense_cost:
        speed = trace.dense_cost.median_seconds / trace.cost.median_seconds
        cells.append(("Reading the prompt", f"{speed:.2f}×", "dense speed, measured"))
    for column, (label, value, note) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(label, value, note or None, delta_color="off", delta_arrow="off")


def _continuation(trace: Trace) -> None:
    left, right = st.columns(2)
    with left:
        st.caption("Most likely next tokens")
        table = pd.DataFrame(
            {"token": [repr(str(p)) for p in trace.next_pieces], "probability": trace.next_probabilities}
        )
        st.dataframe(
            table,
            hide_index=True,
            height="content",
            column_config={"probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)},
        )
    with right:
        st.caption(f"Greedy continuation, {len(trace.new_ids)} tokens")
        st.text(trace.continuation or "(the model ends the text here)")
        if trace.num_spans and len(trace.new_ids):
            kept = [f"{figures.level_name(trace, s)}: {np.sum(row > 0)}" for s, row in enumerate(trace.new_scores)]
            st.caption(f"Of these {len(trace.new_ids)} new tokens were kept at " + ", ".join(kept))


def _costs(trace: Trace) -> None:
    ours, dense = trace.cost, trace.dense_cost
    if ours is None or dense is None:
        st.info("Not measured: the comparison was off, or the time limit left no room for it.")
        return
    rows: list[tuple[str, Callable[[Cost], float], str]] = [
        ("Reading the prompt, median", lambda cost: 1000 * cost.median_seconds, "ms"),
        ("Peak memory of tensors, beyond the weights", lambda cost: cost.peak_bytes / 2**20, "MiB"),
        ("Key/value cache of the prompt", lambda cost: cost.cache_bytes / 2**20, "MiB"),
    ]
    table = pd.DataFrame(
        [
            {
                "": f"{name}, {unit}",
                "SUBLLM": f"{value(ours):,.2f}",
                "dense": f"{value(dense):,.2f}",
                "SUBLLM / dense": f"{value(ours) / value(dense):.2f}",
            }
            for name, value, unit in rows
        ]
    )
    st.dataframe(table, hide_index=True, height="content")
    spread = ", ".join(
        f"{name} {1000 * min(cost.seconds):,.1f} to {1000 * max(cost.seconds):,.1f} ms"
        for name, cost in (("SUBLLM", ours), ("dense", dense))
    )
    where = trace.provenance
    st.caption(
        plain(
            f"Measured on this machine: {where.device}, {where.dtype}, {where.attention}; {len(ours.seconds)} timed "
            f"passes of each model in turn after one to warm up ({spread}). Dense: {where.dense}, as "
            f"transformers' LlamaForCausalLM. {where.versions}."
        )
    )
