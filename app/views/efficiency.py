"""What dropped tokens save: measured on this machine, and predicted for others; the two are never mixed."""

import json
import shlex
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pandas as pd
import streamlit as st

from analysis import AnalysisError, cost_figures
from analysis.efficiency import LENGTHS, Comparison, machine
from analysis.record import silent
from app import runs
from app.messages import plain, plot, show_error
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
        with closing(_measure(settings, choice, device, dtype, lengths, repeats, found)) as steps:
            list(steps)
    if found:
        _report(choice, device, dtype, [found[length] for length in sorted(found)])


def _measure(
    settings: Settings,
    choice: str,
    device: str,
    dtype: str,
    lengths: list[int],
    repeats: int,
    found: dict[int, Comparison],
) -> Generator[None]:
    """Measure what is not known yet, or all of it again; what was measured stays when one stops."""
    place = st.empty()
    columns = place.container().columns([6, 1], vertical_alignment="center")
    bar = columns[0].progress(0.0, say("starting"))
    columns[1].button(say("stop"), key="stop measuring", width="stretch", help=say("stop_help"))

    def progress(share: float, stage: str, **values: object) -> None:
        bar.progress(min(share, 1.0), plain(say(f"progress_{stage}", **values)))

    try:
        folder = settings.locate(choice, progress)
        source = runs.Source("", False, choice, folder, device, dtype)
        for length in [n for n in lengths if n not in found] or lengths:
            found[length] = runs.compare_length(source, length, repeats, progress)
            yield
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    place.empty()


def _report(choice: str, device: str, dtype: str, rows: list[Comparison]) -> None:
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
    facts = machine(device) | {"dtype": dtype, "checkpoint": choice}
    st.caption(plain(" · ".join(facts.values())))
    data: dict[str, Any] = {"facts": facts, "rows": [asdict(row) for row in rows]}
    st.download_button(
        say("save_measured"), json.dumps(data, indent=1), "efficiency.json", icon=":material/download:",
        on_click="ignore",
    )  # fmt: skip


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
