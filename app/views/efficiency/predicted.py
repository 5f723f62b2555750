"""What a SUBLLM would save on other hardware: predicted from its configuration, never measured."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import streamlit as st

from analysis import AnalysisError
from analysis.cost.hardware import Hardware, load_hardware
from analysis.cost.paper import BATCH, Row, batch_that_saves, paper_rows
from analysis.cost.predict import Line, break_even, changed, needed_bytes, predict
from analysis.cost.roofline import PHASES, Scenario
from analysis.figures import cost as cost_figures
from app import engine
from app.messages import ProgressBar, plain, plot, show_error
from app.settings import checkpoint_option
from app.state import session
from app.strings import language, say, table
from subllm import SubllmConfig

_LENGTHS = [2**n for n in range(4, 21)]
_NAMES = {
    "weights": "weights_bytes",
    "cache": "cache_bytes",
    "reading": "reading_bytes",
    "training memory": "training_bytes",
}


def show(config: SubllmConfig, checkpoint: str) -> None:
    """The tab.

    Args:
        config: of the chosen checkpoint; its sizes are kept, its structure and retention can be changed.
        checkpoint: id of the checkpoint.
    """
    st.caption(say("predicted_help"))
    own: list[dict[str, object]] = session().found.setdefault("own hardware", (None, []))[1]
    rows = {row.name: row for row in [*_listed(), *map(Hardware.parse, own)]}
    _, added = session().found.pop("new hardware", (None, None))
    if added in rows:
        st.session_state["hardware"] = added
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
        f"subllm predict{checkpoint_option(checkpoint)} --hardware {shlex.quote(hardware.name)}{listed} "
        f"--dtype {dtype} --tokens {tokens} --batch {batch} --structure {shlex.quote(structure)} "
        f"--retention {percent / 100}",
        language="bash",
    )
    found = _prediction(config, Scenario(hardware, tokens, batch, dtype))
    _numbers(found.lines, hardware)
    left, right = st.columns(2)
    plot(left, found.speedup, "predicted speed-up")
    left.caption(say("curve_help") + " " + _pays(found.pays))
    plot(right, found.cache, "predicted cache")
    right.caption(say("growth_predicted"))
    plot(st, found.modules, "module times")
    st.caption(say("modules_help"))
    st.subheader(say("paper"), help=say("paper_help"))
    _paper(found.paper)


@cache
def _listed() -> list[Hardware]:
    """The hardware table that ships."""
    return load_hardware()


@dataclass(frozen=True, eq=False)
class _Prediction:
    """All that follows from the page's choices. It takes about a second, so reruns do not do it again.

    Attributes:
        lines: times and memory.
        pays: context length from which the SUBLLM is at least as fast, by phase; None if it never is.
        speedup, cache, modules: figures.
        paper: what the paper reports, next to predictions.
    """

    lines: list[Line]
    pays: dict[str, int | None]
    speedup: Any
    cache: Any
    modules: Any
    paper: list[Row]


def _prediction(config: SubllmConfig, scenario: Scenario) -> _Prediction:
    own, words = session(), table(language())
    key = (config.to_json_string(), scenario, language())
    found: _Prediction | None = own.recall("prediction", key)
    if found is None:
        found = _Prediction(
            predict(config, scenario),
            {phase: break_even(config, phase, scenario) for phase in PHASES},
            cost_figures.predicted_speedup(config, scenario, _LENGTHS, words),
            cost_figures.predicted_cache(config, scenario, _LENGTHS, words),
            cost_figures.module_times(config, scenario, words),
            paper_rows(scenario.hardware),
        )
        own.found["prediction"] = (key, found)
    return found


def _own_hardware(own: list[dict[str, object]], dtype: str) -> None:
    """A form for custom rows, which are kept for the session and can be saved."""
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
        pressed = st.button(say("own_measure"), icon=":material/speed:", help=say("check_help"))
        progress = ProgressBar("stop calibrating")
        if pressed:
            with progress:
                entry, added = _entry(engine.calibrate(engine.devices()[0], dtype, progress)), True
        if added:
            try:
                Hardware.parse(entry)
                own[:] = [row for row in own if row["name"] != entry["name"]] + [entry]
                session().found["new hardware"] = (None, entry["name"])  # chosen before its selector is drawn
            except AnalysisError as error:
                show_error(error)
            else:
                st.rerun()
        if own:
            st.download_button(
                say("own_save"), json.dumps(own, indent=1), "hardware.json", icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip


def _entry(hardware: Hardware) -> dict[str, object]:
    return {
        "name": hardware.name,
        "teraflops": {dtype: rate / 1e12 for dtype, rate in hardware.operations.items()},
        "gigabytes_per_second": hardware.bandwidth / 1e9,
        "gigabytes": hardware.memory / 1e9,
        "source": hardware.source,
    }


def _numbers(lines: Sequence[Line], hardware: Hardware) -> None:
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


def _pays(lengths: Mapping[str, int | None]) -> str:
    cells = []
    for phase, length in lengths.items():
        name = say(f"phase_what_{phase}")
        key = "pays_predicted_never" if length is None else "pays_predicted_always" if length == 1 else "pays_predicted"
        cells.append(say(key, phase=name, tokens=f"{length or 0:,}"))
    return say("pays_predicted_title", cells=say("semicolon").join(cells))


def _paper(reported: Sequence[Row]) -> None:
    rows = [
        {
            say("paper_what"): say(f"paper_{row.what}", tokens=f"{row.tokens:,}"),
            say("paper_reported"): f"{row.reported:.2f}×",
            say("paper_predicted"): say("comma").join(
                f"{say(f'paper_phase_{phase}')} {ratio:.2f}×" for phase, ratio in row.predicted.items()
            ),
        }
        for row in reported
    ]
    st.table(pd.DataFrame(rows).set_index(say("paper_what")))
    batches = {what: f"{batch_that_saves(what):.1f}" for what in ("training", "inference")}
    st.caption(say("paper_note", batch=BATCH, **batches))
