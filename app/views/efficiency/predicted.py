"""What a SUBLLM would save on other hardware: predicted from its configuration, never measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import pandas as pd
import streamlit as st

from analysis import AnalysisError
from analysis.cost.hardware import Hardware, load_hardware
from analysis.cost.paper import SHARES, Figure, Paper, papers
from analysis.cost.predict import LaunchBound, Line, break_even, changed, launch_bound, needed_bytes, predict
from analysis.cost.roofline import PHASES, Scenario
from analysis.figures import cost as cost_figures
from app import engine, reproduce
from app.limits import Feature
from app.messages import ProgressBar, plain, plot, show_error
from app.settings import Settings
from app.state import session
from app.strings import language, say, table
from app.views import again
from app.visitors import working
from subllm import SubllmConfig, SubllmError, parse_structure

_LENGTHS = [2**n for n in range(4, 21)]
_MOST_CHARACTERS = 500  # of a structure: a prediction takes up to three seconds of a core
_USUAL = 0.64  # retention of a structure that is typed in place of one without levels
_NAMES = {
    "weights": "weights_bytes",
    "cache": "cache_bytes",
    "reading": "reading_bytes",
    "training memory": "training_bytes",
}


def show(config: SubllmConfig, checkpoint: str, settings: Settings) -> None:
    """The tab.

    Args:
        config: of the chosen checkpoint; its sizes are kept, its structure and retention can be changed.
        checkpoint: id of the checkpoint.
        settings: what the operator allows.
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
    own_structure = str(config.structure)  # in the keys: a field that is there already would keep another model's
    own_shares = [config.retention_ratios[level - 1] for level in config.parsed_structure.brackets] or [_USUAL]
    structure = middle.text_input(
        say("structure"), own_structure, key=f"structure {own_structure} of {checkpoint}", persist_state="session",
        help=say("structure_help"),
    )  # fmt: skip
    tokens = right.select_slider(
        say("context"), _LENGTHS, 8192, key="context", persist_state="session", format_func=lambda n: f"{n:,}"
    )
    batch = right.select_slider(say("batch"), [2**n for n in range(9)], 1, key="batch", persist_state="session")
    graphs = right.toggle(say("graphs"), key="graphs", persist_state="session", help=say("graphs_help"))
    if len(structure) > _MOST_CHARACTERS:
        raise AnalysisError(
            "The structure has {characters:,} characters; a prediction takes at most {most:,}. Shorten it.",
            characters=len(structure),
            most=_MOST_CHARACTERS,
        )
    retention = None
    if parse_structure(structure).brackets:  # the levels of a light/heavy block keep what the model says
        own_percent = min(max(round(100 * fmean(own_shares)), 5), 100)
        percent = middle.slider(
            say("retention_slider"), 5, 100, own_percent, format="%d%%", key=f"share of {checkpoint}",
            persist_state="session",
        )  # fmt: skip
        if (structure, percent) != (own_structure, own_percent):  # its own are finer
            retention = percent / 100
    config = changed(config, structure, retention)
    _own_hardware(own, dtype, settings)
    st.caption(plain(say("hardware_source", name=hardware.name, source=hardware.source)))
    scenario = Scenario(hardware, tokens, batch, dtype, graphs=graphs)
    listed = hardware.name in [entry["name"] for entry in own]
    code = reproduce.predicted(checkpoint, structure, retention, scenario, own_hardware=listed)
    st.code(code.command, language=None, wrap_lines=True)
    again.show(code, command=False)
    found = _prediction(config, scenario)
    _numbers(found.lines, hardware)
    levels = config.parsed_structure.num_levels
    if levels:
        _launch_bound(found.launch_bound)
    else:
        st.info(say("predicted_no_levels"), icon=":material/info:")
    left, right = st.columns(2)
    plot(left, found.speedup, "predicted speed-up")
    left.caption(say("curve_help") + (" " + _pays(found.pays) if levels else ""))
    plot(right, found.cache, "predicted cache")
    right.caption(say("growth_predicted"))
    plot(st, found.modules, "module times")
    st.caption(say("modules_help"))
    st.subheader(say("papers"), help=say("papers_help"))
    _papers(found.papers)


@cache
def _listed() -> list[Hardware]:
    """The hardware table that ships."""
    return load_hardware()


@dataclass(frozen=True, eq=False)
class _Prediction:
    """All that follows from the page's choices. It takes a while, so reruns do not do it again.

    Attributes:
        lines: times and memory.
        launch_bound: phases that take longer to launch than to run.
        pays: context length from which the SUBLLM is at least as fast, by phase; None if it never is.
        speedup, cache, modules: figures.
        papers: what papers report, next to predictions.
    """

    lines: list[Line]
    launch_bound: list[LaunchBound]
    pays: dict[str, int | None]
    speedup: Any
    cache: Any
    modules: Any
    papers: list[Paper]


def _prediction(config: SubllmConfig, scenario: Scenario) -> _Prediction:
    own, words = session(), table(language())
    key = (config.to_json_string(), scenario, language())
    found: _Prediction | None = own.recall("prediction", key)
    if found is None:
        pays = {phase: break_even(config, phase, scenario) for phase in PHASES}
        found = _Prediction(
            predict(config, scenario),
            launch_bound(config, scenario),
            pays,
            cost_figures.predicted_speedup(config, scenario, _LENGTHS, pays, words),
            cost_figures.predicted_cache(config, scenario, _LENGTHS, words),
            cost_figures.module_times(config, scenario, words),
            papers(scenario.hardware),
        )
        own.found["prediction"] = (key, found)
    return found


def _own_hardware(own: list[dict[str, object]], dtype: str, settings: Settings) -> None:
    """A form for custom rows, which are kept for the session and can be saved."""
    with st.popover(say("own_hardware"), icon=":material/developer_board:"):
        with st.form("own hardware row", border=False):
            st.caption(say("own_help"))
            entry = {
                "name": st.text_input(say("own_name")),
                "teraflops": {dtype: st.number_input(f"{say('own_rate')} ({dtype})", min_value=0.0)},
                "gigabytes_per_second": st.number_input(say("own_bandwidth"), min_value=0.0),
                "gigabytes": st.number_input(say("own_memory"), min_value=0.0),
                "launch_microseconds": st.number_input(say("own_launch"), min_value=0.0),
                "source": st.text_input(say("own_source")),
            }
            added = st.form_submit_button(say("own_add"))
        allowed = Feature.CALIBRATION in settings.limits.features
        pressed = allowed and st.button(say("own_measure"), icon=":material/speed:", help=say("check_help"))
        progress = ProgressBar()
        if pressed:
            try:
                with working("calibration", settings, progress, Feature.CALIBRATION) as work:
                    entry, added = _entry(engine.calibrate(engine.devices()[0], dtype, work)), True
            except (SubllmError, AnalysisError) as error:
                show_error(error)
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
        "launch_microseconds": 1e6 * hardware.launch_seconds,
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


def _launch_bound(phases: Sequence[LaunchBound]) -> None:
    """Say where the model is too small for the hardware to show what it saves."""
    cells = []
    for found in phases:
        where = {(True, True): "either", (True, False): "tokens", (False, True): "batch", (False, False): "never"}
        ending = where[found.tokens is not None, found.batch is not None]
        cells.append(
            say(
                "launch_bound",
                phase=say(f"phase_what_{found.phase}"),
                launching=f"{1000 * found.launching:,.2f}",
                working=f"{1000 * found.working:,.2f}",
                from_where=say(
                    f"launch_bound_{ending}", tokens=f"{found.tokens or 0:,}", batch=f"{found.batch or 0:,}"
                ),
            )
        )
    if cells:
        st.info("\n\n".join(cells), icon=":material/rocket_launch:")


def _pays(lengths: Mapping[str, int | None]) -> str:
    cells = []
    for phase, length in lengths.items():
        name = say(f"phase_what_{phase}")
        key = "pays_predicted_never" if length is None else "pays_predicted_always" if length == 1 else "pays_predicted"
        cells.append(say(key, phase=name, tokens=f"{length or 0:,}"))
    return say("pays_predicted_title", cells=say("semicolon").join(cells))


def _papers(found: Sequence[Paper]) -> None:
    for paper in found:
        st.markdown(f"**{plain(say(f'paper_title_{paper.key}'))}**")
        rows = [
            {
                say("paper_what"): plain(f"{figure.system}, {_named(figure)}"),
                say("paper_reported"): f"{figure.reported}× {figure.measured}" if figure.reported else "–",
                say("paper_predicted"): say("comma").join(
                    f"{say(f'paper_of_{what}')} {f'{ratio.low:.1%}' if what in SHARES else f'{ratio}×'}"
                    for what, ratio in figure.predicted.items()
                )
                or "–",
                say("paper_source"): figure.source or "–",
            }
            for figure in paper.figures
        ]
        st.table(pd.DataFrame(rows).set_index(say("paper_what")))
        st.caption(plain(say(f"paper_note_{paper.key}")))


def _named(figure: Figure) -> str:
    name = say(f"paper_{figure.what}")
    return say("paper_at", what=name, tokens=f"{figure.tokens:,}") if figure.tokens else name
