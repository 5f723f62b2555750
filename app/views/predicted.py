"""What a SUBLLM would save on hardware that is not at hand: predicted from its configuration, never measured."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from analysis import cost_figures, roofline
from analysis.paper import BATCH, batch_that_saves, paper_rows
from app.messages import plain, plot
from app.strings import language, say, table
from subllm import SubllmConfig

_LENGTHS = [2**n for n in range(7, 21)]


def show(config: SubllmConfig) -> None:
    """Sliders, and times and memory that follow from them.

    Args:
        config: of the chosen checkpoint; its sizes are kept, its structure and retention can be changed.
    """
    words = table(language())
    st.caption(say("predicted_help"))
    rows = {row.name: row for row in roofline.load_hardware()}
    left, middle, right = st.columns(3)
    hardware = rows[left.selectbox(say("hardware"), list(rows), key="hardware", persist_state="session")]
    dtype = left.selectbox(say("dtype"), list(hardware.operations), key="hardware dtype", persist_state="session")
    structure = middle.text_input(
        say("structure"), str(config.structure), key="structure", persist_state="session", help=say("structure_help")
    )
    share = (
        middle.slider(say("retention_slider"), 5, 100, 64, format="%d%%", key="share", persist_state="session") / 100
    )
    tokens = right.select_slider(
        say("context"), _LENGTHS, 8192, key="context", persist_state="session", format_func=lambda n: f"{n:,}"
    )
    batch = right.select_slider(say("batch"), [2**n for n in range(9)], 1, key="batch", persist_state="session")
    changed = config.to_dict() | {"structure": structure, "num_hidden_layers": structure.count("T")}
    spans = structure.count("(")
    config = SubllmConfig.from_dict(changed | {"retention_ratio": share if spans else 1.0})
    st.caption(plain(say("hardware_source", name=hardware.name, source=hardware.source)))
    _numbers(config, hardware, dtype, tokens, batch)
    plot(st, cost_figures.predicted_speedup(config, hardware, dtype, _LENGTHS, batch, words), "predicted speed-up")
    st.caption(say("curve_help"))
    plot(st, cost_figures.module_times(config, hardware, dtype, tokens, batch, words), "module times")
    st.caption(say("modules_help"))
    st.subheader(say("paper"), help=say("paper_help"))
    _paper(hardware)


def _numbers(config: SubllmConfig, hardware: roofline.Hardware, dtype: str, tokens: int, batch: int) -> None:
    twin = roofline.dense(config)
    pairs: dict[str, Sequence[float]] = {}
    for phase in roofline.PHASES:
        times = [
            1000 * hardware.seconds(roofline.phase_work(each, phase, tokens, batch, dtype), dtype)
            for each in (config, twin)
        ]
        pairs[say(f"phase_{phase}")] = times
    levels = [roofline.level_tokens(each, tokens) for each in (config, twin)]
    each_bytes = roofline.BYTES[dtype]
    pairs[say("weights_bytes")] = [roofline.parameters(each) * each_bytes / 2**20 for each in (config, twin)]
    pairs[say("cache_bytes")] = [
        roofline.cache_bytes(each, level, batch, dtype) / 2**20
        for each, level in zip((config, twin), levels, strict=True)
    ]
    pairs[say("training_bytes")] = [
        sum(roofline.training_bytes(each, level, batch).values()) / 2**20
        for each, level in zip((config, twin), levels, strict=True)
    ]
    rows = [
        {"SUBLLM": f"{ours:,.2f}", say("dense"): f"{theirs:,.2f}", f"SUBLLM / {say('dense')}": f"{ours / theirs:.2f}"}
        for ours, theirs in pairs.values()
    ]
    st.table(pd.DataFrame(rows, index=list(pairs)))
    full = max(sum(pair) * 2**20 for pair in zip(pairs[say("weights_bytes")], pairs[say("cache_bytes")], strict=True))
    if full > hardware.memory:
        st.warning(say("too_big", need=f"{full / 1e9:,.0f}", have=f"{hardware.memory / 1e9:,.0f}"))


def _paper(hardware: roofline.Hardware) -> None:
    rows = [
        {
            say("paper_what"): say(f"paper_{row.what}", tokens=f"{row.tokens:,}"),
            say("paper_reported"): f"{row.reported:.2f}×",
            say("paper_predicted"): ", ".join(
                f"{say(f'paper_phase_{phase}')} {ratio:.2f}×" for phase, ratio in row.predicted.items()
            ),
        }
        for row in paper_rows(hardware)
    ]
    st.table(pd.DataFrame(rows).set_index(say("paper_what")))
    batches = {what: f"{batch_that_saves(what):.1f}" for what in ("training", "inference")}
    st.caption(say("paper_note", batch=BATCH, **batches))
