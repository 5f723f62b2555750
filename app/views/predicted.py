"""What a SUBLLM would save on hardware that is not at hand: predicted from its configuration, never measured."""

import json
import shlex

import pandas as pd
import streamlit as st

from analysis import AnalysisError, cost_figures, roofline
from analysis.paper import BATCH, batch_that_saves, paper_rows
from analysis.predict import break_even, changed, needed_bytes, predict
from app import runs
from app.messages import plain, plot, show_error
from app.settings import checkpoint_option
from app.strings import language, say, table
from subllm import SubllmConfig

_LENGTHS = [2**n for n in range(4, 21)]
_NAMES = {
    "weights": "weights_bytes",
    "cache": "cache_bytes",
    "reading": "reading_bytes",
    "training memory": "training_bytes",
}


def show(config: SubllmConfig, choice: str) -> None:
    """Sliders, and times and memory that follow from them.

    Args:
        config: of the chosen checkpoint; its sizes are kept, its structure and retention can be changed.
        choice: of checkpoint.
    """
    words = table(language())
    st.caption(say("predicted_help"))
    own: list[dict[str, object]] = st.session_state.setdefault("own hardware", [])
    rows = {row.name: row for row in [*roofline.load_hardware(), *map(roofline.Hardware.parse, own)]}
    left, middle, right = st.columns(3)
    hardware = rows[left.selectbox(say("hardware"), list(rows), key="hardware", persist_state="session")]
    dtype = left.selectbox(say("dtype"), list(hardware.operations), key="hardware dtype", persist_state="session")
    structure = middle.text_input(
        say("structure"), str(config.structure), key="structure", persist_state="session", help=say("structure_help")
    )
    percent = middle.slider(say("retention_slider"), 5, 100, 64, format="%d%%", key="share", persist_state="session")
    tokens = right.select_slider(
        say("context"), _LENGTHS, 8192, key="context", persist_state="session", format_func=lambda n: f"{n:,}"
    )
    batch = right.select_slider(say("batch"), [2**n for n in range(9)], 1, key="batch", persist_state="session")
    config = changed(config, structure, percent / 100)
    _own_hardware(own, dtype)
    st.caption(plain(say("hardware_source", name=hardware.name, source=hardware.source)))
    listed = " --table hardware.json" if hardware.name in [entry["name"] for entry in own] else ""
    st.code(
        f"python -m analysis.predict{checkpoint_option(choice)} --hardware {shlex.quote(hardware.name)}{listed} "
        f"--dtype {dtype} --tokens {tokens} --batch {batch} --structure {shlex.quote(structure)} "
        f"--retention {percent / 100}",
        language="bash",
    )
    _numbers(config, hardware, dtype, tokens, batch)
    left, right = st.columns(2)
    plot(left, cost_figures.predicted_speedup(config, hardware, dtype, _LENGTHS, batch, words), "predicted speed-up")
    left.caption(say("curve_help") + " " + _pays(config, hardware, dtype, batch))
    plot(right, cost_figures.predicted_cache(config, hardware, dtype, _LENGTHS, batch, words), "predicted cache")
    right.caption(say("growth_predicted"))
    plot(st, cost_figures.module_times(config, hardware, dtype, tokens, batch, words), "module times")
    st.caption(say("modules_help"))
    st.subheader(say("paper"), help=say("paper_help"))
    _paper(hardware)


def _own_hardware(own: list[dict[str, object]], dtype: str) -> None:
    """A form for rows of one's own; they are kept for the session, and can be saved."""
    with st.popover(say("own_hardware"), icon=":material/developer_board:"):
        with st.form("own hardware row", border=False):
            st.caption(say("own_help"))
            entry = {
                "name": st.text_input(say("own_name")),
                "teraflops": {dtype: st.number_input(f"{say('own_rate')} ({dtype})", min_value=0.0)},
                "gigabytes_per_second": st.number_input(say("own_bandwidth"), min_value=0.0),
                "gigabytes": st.number_input(say("own_memory"), min_value=0.0),
                "source": st.text_input(say("own_source")),
            }
            added = st.form_submit_button(say("own_add"))
        if st.button(say("own_measure"), icon=":material/speed:", help=say("check_help")):
            entry, added = _entry(runs.calibrate(runs.devices()[0], dtype)), True
        if added:
            try:
                roofline.Hardware.parse(entry)
                own[:] = [row for row in own if row["name"] != entry["name"]] + [entry]
                st.session_state["hardware"] = entry["name"]
            except AnalysisError as error:
                show_error(error)
            else:
                st.rerun()
        if own:
            st.download_button(
                say("own_save"), json.dumps(own, indent=1), "hardware.json", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip


def _entry(hardware: roofline.Hardware) -> dict[str, object]:
    return {
        "name": hardware.name,
        "teraflops": {dtype: rate / 1e12 for dtype, rate in hardware.operations.items()},
        "gigabytes_per_second": hardware.bandwidth / 1e9,
        "gigabytes": hardware.memory / 1e9,
        "source": hardware.source,
    }


def _numbers(config: SubllmConfig, hardware: roofline.Hardware, dtype: str, tokens: int, batch: int) -> None:
    lines = predict(config, hardware, dtype, tokens, batch)
    rows = [
        {
            "SUBLLM": f"{line.ours:,.2f}",
            say("dense"): f"{line.dense:,.2f}",
            f"SUBLLM / {say('dense')}": f"{line.ours / line.dense:.2f}",
        }
        for line in lines
    ]
    names = [say(_NAMES.get(line.what, f"phase_{line.what}")) for line in lines]
    st.table(pd.DataFrame(rows, index=names))
    needed = needed_bytes(lines)
    if needed > hardware.memory:
        st.warning(say("too_big", need=f"{needed / 1e9:,.1f}", have=f"{hardware.memory / 1e9:,.1f}"))


def _pays(config: SubllmConfig, hardware: roofline.Hardware, dtype: str, batch: int) -> str:
    cells = []
    for phase in roofline.PHASES:
        length = break_even(config, hardware, phase, batch, dtype)
        name = say(f"phase_what_{phase}")
        key = "pays_predicted_never" if length is None else "pays_predicted_always" if length == 1 else "pays_predicted"
        cells.append(say(key, phase=name, tokens=f"{length or 0:,}"))
    return say("pays_predicted_title", cells="; ".join(cells))


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
