"""What dropped tokens save: measured on this machine, and predicted for others; the two are never mixed."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from analysis import AnalysisError, cost_figures
from analysis.efficiency import LENGTHS, Comparison, machine
from analysis.record import silent
from analysis.roofline import speedup
from app import runs
from app.messages import plain, plot, progress_bar, show_error
from app.settings import DEMO, Settings
from app.strings import language, say, table
from app.views import chooser, predicted
from subllm import SubllmError
from subllm.checkpoints import read_config


def show() -> None:
    """The page."""
    settings = Settings.read()
    st.title(say("efficiency_title"))
    st.write(say("efficiency_intro"))
    with st.sidebar:
        choice, device, dtype = chooser.checkpoint(settings)
        chooser.language_switch()
    measured, what_if = st.tabs([say("measured_tab"), say("predicted_tab")], on_change="rerun", key="efficiency")
    if measured.open:
        with measured:
            _measured(settings, choice, device, dtype)
    if what_if.open:
        with what_if:
            folder = settings.locate(choice, silent)
            predicted.show(read_config(folder))


def _measured(settings: Settings, choice: str, device: str, dtype: str) -> None:
    st.caption(say("measured_help"))
    left, right = st.columns(2)
    allowed = [length for length in LENGTHS if length <= settings.max_tokens]
    lengths = left.multiselect(say("lengths"), allowed, allowed[:2], key="lengths", persist_state="session")
    repeats = right.slider(say("repeats"), 1, 9, 3, key="repeats", help=say("repeats_help"), persist_state="session")
    command = f"python -m analysis.efficiency --lengths {' '.join(map(str, lengths))} --repeats {repeats}"
    which = "" if choice == DEMO else f" --checkpoint {shlex.quote(choice)}"
    st.code(f"{command} --device {device} --dtype {dtype}{which}", language="bash")
    pressed = st.button(say("measure"), type="primary", icon=":material/speed:", disabled=not lengths)
    key = (choice, device, dtype, repeats)
    found: dict[int, Comparison] = st.session_state.setdefault("measured", {}).setdefault(key, {})
    if pressed:
        _measure(settings, choice, device, dtype, lengths, repeats, found)
    if found:
        _report(choice, settings.locate(choice, silent), device, dtype, [found[length] for length in sorted(found)])


def _measure(
    settings: Settings,
    choice: str,
    device: str,
    dtype: str,
    lengths: list[int],
    repeats: int,
    found: dict[int, Comparison],
) -> None:
    """Measure what is not known yet, or all of it again; what was measured stays when one stops."""
    place = st.empty()
    progress = progress_bar(place, key="stop measuring")
    try:
        folder = settings.locate(choice, progress)
        source = runs.Source("", False, choice, folder, device, dtype)
        for length in [n for n in lengths if n not in found] or lengths:
            found[length] = runs.compare_length(source, length, repeats, progress)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    place.empty()


def _report(choice: str, folder: Path, device: str, dtype: str, rows: list[Comparison]) -> None:
    words = table(language())
    st.table(_table(rows))
    st.caption(say("measured_note"))
    noisy = [f"{row.tokens:,}" for row in rows if row.disturbed]
    if noisy:
        st.warning(say("disturbed", lengths=", ".join(noisy)))
    left, right = st.columns(2)
    plot(left, cost_figures.measured_speedup(rows, words), "measured speed-up")
    left.caption(say("speedup_help"))
    plot(right, cost_figures.measured_memory(rows, words), "measured memory")
    right.caption(say("memory_help"))
    last = rows[-1]
    plot(st, cost_figures.measured_steps(last, words), "measured steps")
    st.caption(say("steps_help", tokens=f"{last.tokens:,}", share=f"{last.routing_share:.1%}"))
    cells = [
        say("decode_cell", blocks=blocks, time=f"{time:.2f}", share=f"{share:.2f}")
        for blocks, (time, share) in last.decode_by_blocks().items()
    ]
    st.caption(say("decode_help", cells="; ".join(cells)))
    _check(folder, device, dtype, rows)
    facts = machine(device) | {"dtype": dtype, "checkpoint": choice}
    st.caption(plain(" · ".join(facts.values())))
    data: dict[str, Any] = {"facts": facts, "rows": [asdict(row) for row in rows]}
    st.download_button(
        say("save_measured"), json.dumps(data, indent=1), "efficiency.json", icon=":material/download:",
        on_click="ignore",
    )  # fmt: skip


def _check(folder: Path, device: str, dtype: str, rows: list[Comparison]) -> None:
    """Measured against predicted for this machine, with the error."""
    key = ("calibrated", device, dtype)
    if st.button(say("check"), icon=":material/balance:", help=say("check_help")):
        st.session_state[str(key)] = runs.calibrate(device, dtype)
    hardware = st.session_state.get(str(key))
    if hardware is None:
        return
    config = read_config(folder)
    entries = []
    for row in rows:
        measured = row.ratio("dense", "subllm")
        predicted = speedup(config, hardware, "prefill", row.tokens, 1, dtype, row.retention)
        entries.append(
            {
                say("measured_tokens"): f"{row.tokens:,}",
                say("check_measured"): f"{measured:.2f}×",
                say("check_predicted"): f"{predicted:.2f}×",
                say("check_error"): f"{predicted / measured - 1:+.0%}",
            }
        )
    st.table(pd.DataFrame(entries).set_index(say("measured_tokens")))
    rate, bandwidth = f"{hardware.operations[dtype] / 1e9:,.0f}", f"{hardware.bandwidth / 1e9:,.1f}"
    st.caption(plain(say("check_note", source=hardware.source, rate=rate, bandwidth=bandwidth)))


def _table(rows: list[Comparison]) -> pd.DataFrame:
    entries = [
        {
            say("measured_tokens"): f"{row.tokens:,}",
            say("measured_kept"): ", ".join(f"{share:.0%}" for share in row.retention) or "–",
            say("measured_prefill"): f"{row.ratio('dense', 'subllm'):.2f}×",
            say("measured_limit"): f"{row.prefill_limit:.2f}×",
            say("measured_spread"): f"{row.spread('subllm'):.2f}, {row.spread('dense'):.2f}",
            say("measured_decode"): f"{row.ratio('dense decode', 'subllm decode'):.2f}×",
            say("measured_cache"): f"{row.cache_bytes[0] / row.cache_bytes[1]:.2f}×",
            say("measured_peak"): f"{row.peak_bytes[0] / row.peak_bytes[1]:.2f}×",
        }
        for row in rows
    ]
    return pd.DataFrame(entries).set_index(say("measured_tokens"))
