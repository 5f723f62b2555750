"""Measurements on this machine: what to measure, the run, and its tables and figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import streamlit as st

from analysis import AnalysisError
from analysis.cost.comparison import DECODE_AGAINST, WRITING, Baseline, Comparison, Setting
from analysis.cost.hardware import Hardware
from analysis.cost.roofline import Scenario, speedup
from analysis.cost.sizes import level_tokens, prefill_bytes
from analysis.cost.sweep import LENGTHS, facts_of, from_parquet, settings_of, to_parquet
from analysis.figures import cost as cost_figures
from analysis.figures.terms import place_name
from app import engine, reproduce
from app.limits import Feature
from app.messages import ProgressBar, plain, plot, show_error
from app.settings import Settings
from app.state import session
from app.strings import language, name_of, say, table
from app.views import again
from app.views.boxes import one_of, several_of
from app.views.chooser import Choice
from app.visitors import working
from subllm import SubllmConfig, SubllmError, parse_structure
from subllm.assets import ASSETS

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SHARES = (0.0, 0.25, 0.4, 0.5, 0.64, 0.75, 0.9, 1.0)
_SHIPPED = ASSETS / "benchmarks" / "cpu-float32.parquet"


@dataclass(frozen=True)
class Measured:
    """What all rows of a sweep have in common, apart from facts about the machine.

    Attributes:
        choice: checkpoint, device and dtype.
        repeats: timed passes of each model.
        baseline: one of `Baseline`, or the name of a LLaMA.
    """

    choice: Choice
    repeats: int
    baseline: str


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was measured of one checkpoint against one baseline.

    Attributes:
        facts: what all rows have in common, by name.
        config: of the checkpoint.
        rows: by setting.
    """

    facts: dict[str, str]
    config: SubllmConfig
    rows: dict[Setting, Comparison]

    def sorted(self) -> list[Comparison]:
        """The rows, in the order of their settings."""
        return [self.rows[setting] for setting in sorted(self.rows)]


def show(settings: Settings, choice: Choice) -> None:
    """The tab.

    Args:
        settings: what the operator allows.
        choice: checkpoint, device and dtype to measure.
    """
    st.caption(say("measured_help"))
    filled = False
    if Feature.MEASURING in settings.limits.features:
        filled = _measuring(settings, choice)
    else:
        st.info(say("measuring_off"), icon=":material/info:")
    if Feature.UPLOADS in settings.limits.features:
        with st.expander(say("open_measured"), icon=":material/folder_open:"):
            filled |= _opening(settings)
    if not filled:
        facts, rows = _shipped()
        where = f"{facts['device']}, {facts['processor']}"
        st.info(plain(say("measured_elsewhere", where=where)), icon=":material/info:")
        report(facts, rows, "shipped ")


@cache
def _shipped() -> tuple[dict[str, str], list[Comparison]]:
    """Facts and measurements that come with the app."""
    return from_parquet(_SHIPPED.read_bytes())


def _opening(settings: Settings) -> bool:
    """Measurements in a file; whether there are any."""
    file = st.file_uploader(say("open_measured_help"), type="parquet")
    progress = ProgressBar()
    if file is None:
        return False
    try:
        report(*_opened(file.file_id, file.getvalue, settings, progress), "opened ")
    except AnalysisError as error:
        show_error(error)
    return True


def _measuring(settings: Settings, choice: Choice) -> bool:
    """What to measure, and what was measured with these choices or else last; whether anything was."""
    left, right = st.columns(2)
    allowed = [length for length in LENGTHS if length <= settings.limits.tokens]
    lengths = left.multiselect(say("lengths"), allowed, allowed[:2], key="lengths", persist_state="session")
    batches = right.multiselect(say("batches"), _BATCHES, [1], key="batches", persist_state="session")
    shares = several_of(say("shares"), _SHARES, _share, "shares", place=left, default=[0.0], help=say("shares_help"))
    against = one_of(
        say("baseline"), [*Baseline, *settings.llamas()], _baseline, "baseline", place=right,
        help=say("baseline_help"),
    )  # fmt: skip
    repeats = left.slider(say("repeats"), 1, 9, 3, key="repeats", help=say("repeats_help"), persist_state="session")
    measured = Measured(choice, repeats, against)
    asked = settings_of(lengths, batches, shares)
    code = reproduce.measured(
        choice.checkpoint, choice.device, choice.dtype, (lengths, batches, shares), against, repeats
    )
    st.code(code.command, language=None, wrap_lines=True)
    again.show(code, command=False)
    pressed = st.button(say("measure"), type="primary", icon=":material/speed:", disabled=not asked)
    sweeps: dict[Measured, Sweep] = session().found.setdefault("measured", (None, {}))[1]
    if pressed:
        _measure(settings, measured, asked, sweeps)
    if not sweeps:
        return False
    shown = measured if measured in sweeps else next(reversed(sweeps))
    if shown != measured:
        st.info(plain(say("measured_before", choices=_choices(shown))), icon=":material/info:")
    sweep = sweeps[shown]
    rows = sweep.sorted()
    report(sweep.facts, rows, "")
    of_this_size = shown.baseline in [*Baseline]  # what is predicted is the dense model of the checkpoint's size
    if of_this_size and Feature.CALIBRATION in settings.limits.features:
        _check(sweep.config, shown.choice, rows, settings)
    st.download_button(
        say("save_measured"), lambda: to_parquet(sweep.facts, rows), "efficiency.parquet",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip
    return True


def _choices(measured: Measured) -> str:
    """What was chosen for a sweep, with the labels of the selectors."""
    choice = measured.choice
    chosen = {
        "checkpoint": name_of(choice.checkpoint),
        "device": engine.device_label(choice.device),
        "dtype": choice.dtype,
        "baseline": _baseline(measured.baseline),
        "repeats": measured.repeats,
    }
    return say("semicolon").join(say("labelled", label=say(key), value=value) for key, value in chosen.items())


def _opened(
    name: str, data: Callable[[], bytes], settings: Settings, progress: ProgressBar
) -> tuple[dict[str, str], list[Comparison]]:
    """Facts and measurements of an uploaded file, which is read once."""
    own = session()
    if own.recall("opened measurements", name) is None:
        with working("upload", settings, progress, Feature.UPLOADS):
            own.found["opened measurements"] = (name, from_parquet(data()))
    found: tuple[dict[str, str], list[Comparison]] = own.recall("opened measurements", name)
    return found


def report(facts: dict[str, str], rows: Sequence[Comparison], key: str) -> None:
    """Tables and figures of measurements.

    Args:
        facts: facts that all rows have in common, by name.
        rows: at least one.
        key: prefix for the keys of elements.
    """
    words = table(language())
    st.table(_table(rows))
    st.caption(say("measured_note"))
    noisy = [_words(row.setting) for row in rows if row.disturbed]
    if noisy:
        st.warning(say("disturbed", lengths=plain(say("comma").join(noisy))))
    left, right = st.columns(2)
    plot(left, cost_figures.measured_speedup(rows, words), f"{key}measured speed-up")
    left.caption(say("speedup_help") + " " + _pays(rows))
    plot(right, cost_figures.measured_memory(rows, words), f"{key}measured memory")
    right.caption(say("memory_help"))
    settings = [row.setting for row in rows]
    chosen = settings[-1]
    if len(settings) > 1:
        chosen = one_of(say("look_at"), settings, _words, f"{key}look at", default=len(settings) - 1)
    row = next((each for each in rows if each.setting == chosen), rows[-1])
    plot(st, cost_figures.measured_modules(row, words), f"{key}measured modules")
    plot(st, cost_figures.measured_steps(row, words), f"{key}measured steps")
    st.caption(say("steps_help", tokens=plain(_words(row.setting)), share=f"{row.routing_share:.1%}"))
    left, right = st.columns(2)
    plot(left, cost_figures.cache_growth(row, words), f"{key}cache growth")
    left.caption(say("growth_help"))
    right.table(_levels(row))
    cells = [
        say("decode_cell", n=blocks, time=f"{time:.2f}", share=f"{share:.2f}")
        for blocks, (time, share) in row.decode_by_blocks().items()
    ]
    said = say("decode_help", cells=say("semicolon").join(cells))
    said += say("decode_writer") if facts.get(DECODE_AGAINST) == WRITING else ""  # files of earlier versions lack it
    right.caption(said + (say("decode_graphs") if row.graphs else ""))
    st.caption(plain(" · ".join(f"{name}: {value}" for name, value in facts.items())))


def _measure(settings: Settings, measured: Measured, asked: Sequence[Setting], sweeps: dict[Measured, Sweep]) -> None:
    """Measure the settings that are not known yet, or all of them again; finished settings stay when one stops."""
    against = measured.baseline
    try:
        bar = ProgressBar()
        with working("measurement", settings, bar, Feature.MEASURING) as work:
            model = measured.choice.locate(settings, work)
            baseline = against if against in [*Baseline] else str(settings.locate(against, work))
            checkpoint, _ = model.load(work)
            facts = facts_of(checkpoint, against, measured.repeats)
            known = sweeps.get(measured)
            rows = known.rows if known is not None and known.facts == facts else {}
            for setting in [one for one in asked if one not in rows] or asked:
                rows[setting] = engine.compare_setting(model, setting, baseline, measured.repeats, work)
                sweeps.pop(measured, None)  # the last one of the table is what was measured last
                sweeps[measured] = Sweep(facts, checkpoint.model.config, rows)
    except (SubllmError, AnalysisError) as error:
        show_error(error)


def _check(config: SubllmConfig, choice: Choice, rows: Sequence[Comparison], settings: Settings) -> None:
    """A table of measured and predicted speed-ups and peak memory on this machine, with the errors."""
    own, device, dtype = session(), choice.device, choice.dtype
    pressed = st.button(say("check"), icon=":material/balance:", help=say("check_help"))
    progress = ProgressBar()
    if pressed:
        try:
            with working("calibration", settings, progress, Feature.CALIBRATION) as work:
                own.found["this machine"] = ((device, dtype), engine.calibrate(device, dtype, work))
        except (SubllmError, AnalysisError) as error:
            show_error(error)
    hardware: Hardware | None = own.recall("this machine", (device, dtype))
    if hardware is None:
        return
    entries = []
    for row in rows:
        measured = row.ratio("dense", "subllm")
        predicted = speedup(config, "prefill", Scenario(hardware, row.tokens, row.batch, dtype, tuple(row.retention)))
        levels = level_tokens(config, row.tokens, row.retention)
        peak = prefill_bytes(config, levels, row.batch, dtype, pieces=device == "cpu")
        entries.append(
            {
                say("measured_tokens"): _words(row.setting),
                say("check_measured"): f"{measured:.2f}×",
                say("check_predicted"): f"{predicted:.2f}×",
                say("check_error"): f"{predicted / measured - 1:+.1%}",
                say("check_peak"): f"{row.peak_bytes[0] / 2**20:,.0f}",
                say("check_peak_predicted"): f"{peak / 2**20:,.0f}",
                say("check_peak_error"): f"{peak / row.peak_bytes[0] - 1:+.1%}",
            }
        )
    st.table(pd.DataFrame(entries).set_index(say("measured_tokens")))
    rate, bandwidth = f"{hardware.operations[dtype] / 1e9:,.0f}", f"{hardware.bandwidth / 1e9:,.1f}"
    st.caption(plain(say("check_note", rate=rate, bandwidth=bandwidth)))


def _table(rows: Sequence[Comparison]) -> pd.DataFrame:
    energy = any(sum(row.joules["subllm"]) for row in rows)  # files of earlier versions have zeros
    resident = any(row.resident_ratio is not None for row in rows)
    entries = []
    for row in rows:
        entry = {
            say("measured_tokens"): _words(row.setting),
            say("measured_kept"): ", ".join(f"{share:.0%}" for share in row.retention) or "–",
            say("measured_prefill"): f"{row.ratio('dense', 'subllm'):.2f}×",
            say("measured_limit"): f"{row.prefill_limit:.2f}×",
            say("measured_spread"): f"{row.spread('subllm'):.2f}, {row.spread('dense'):.2f}",
            say("measured_rate"): f"{row.throughput('subllm'):,.0f}",
            say("measured_decode"): f"{row.ratio('dense decode', 'subllm decode'):.2f}×",
            say("measured_decode_rate"): f"{row.throughput('subllm decode'):,.1f}",
            say("measured_cache"): f"{row.cache_bytes[0] / row.cache_bytes[1]:.2f}×",
            say("measured_peak"): f"{row.peak_bytes[0] / row.peak_bytes[1]:.2f}×",
        }
        if resident:
            entry[say("measured_resident")] = "–" if row.resident_ratio is None else f"{row.resident_ratio:.2f}×"
        if energy:
            spent = [sum(row.joules[name]) for name in ("subllm", "dense")]
            entry[say("measured_energy")] = f"{spent[0] / spent[1]:.2f}×" if all(spent) else "–"
        entries.append(entry)
    return pd.DataFrame(entries).set_index(say("measured_tokens"))


def _levels(row: Comparison) -> pd.DataFrame:
    structure, words = parse_structure(row.structure), table(language())
    names = [say("outside"), *(place_name(structure, site.level, words) for site in structure.sites)]
    entries = [
        {say("level_cache"): name, "MiB": f"{size / 2**20:,.2f}"}
        for name, size in zip(names, row.level_bytes, strict=True)
    ]
    entries.append({say("level_cache"): say("dense"), "MiB": f"{row.cache_bytes[1] / 2**20:,.2f}"})
    return pd.DataFrame(entries).set_index(say("level_cache"))


def _pays(rows: Sequence[Comparison]) -> str:
    """The prompt length from which the SUBLLM is at least as fast, among settings that differ only in length."""
    longest = max(rows, key=lambda row: row.setting)
    alike = [row for row in rows if (row.batch, row.asked) == (longest.batch, longest.asked)]
    length = cost_figures.measured_break_even(alike)
    if length is None:
        return say("pays_never")
    return say("pays_from", tokens=f"{length:,}") if length else say("pays_always")


def _share(share: float) -> str:
    return f"{share:.0%}" if share else say("share_own")


def _baseline(which: str) -> str:
    return say(f"baseline_{which}") if which in [*Baseline] else which


def _words(setting: Setting) -> str:
    text = f"{setting.tokens:,}" if setting.batch == 1 else f"{setting.batch} × {setting.tokens:,}"
    return say("setting_retention", tokens=text, share=f"{setting.retention:.0%}") if setting.retention else text
