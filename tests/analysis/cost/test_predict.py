"""Predictions from the command line, and where a SUBLLM begins to pay."""

from dataclasses import replace

import pytest

from analysis import AnalysisError
from analysis.commands.predict import main
from analysis.cost.hardware import Hardware, find_hardware, load_hardware
from analysis.cost.predict import break_even, changed, needed_bytes, predict
from analysis.cost.roofline import PHASES, Scenario, phase_work, speedup
from analysis.cost.sizes import parameters, without_levels
from subllm import ConfigurationError, StructureError
from tests.conftest import run_command, tiny_config

SLOW_MEMORY = Scenario(Hardware("slow memory", {"float32": 1e15}, 1e9, 1e9, "a test"), dtype="float32")


def test_the_break_even_is_the_shortest_length_that_pays():
    config = tiny_config("T(T)T", retention_ratio=0.9)
    scenario = Scenario(load_hardware()[0])
    for phase in ("prefill", "training"):
        length = break_even(config, phase, scenario)
        assert length > 1, "a level of one block costs more than it saves on few tokens"
        assert speedup(config, phase, scenario.at(length)) >= 1
        assert speedup(config, phase, scenario.at(length - 1)) < 1
    assert break_even(tiny_config("T()T", retention_ratio=0.5), "prefill", SLOW_MEMORY) is None


def test_lines_have_units_and_a_level_saves_all_but_weights():
    lines = {line.what: line for line in predict(tiny_config("T(TTTT)T"), replace(SLOW_MEMORY, tokens=200, batch=2))}
    assert {line.unit for line in lines.values()} == {"ms", "MiB"}
    for what, line in lines.items():
        assert (line.ours < line.dense) == (what != "weights"), what
    larger = lines["weights"].dense + lines["reading"].dense
    assert needed_bytes(list(lines.values())) == larger * 2**20
    with pytest.raises(AnalysisError, match="must be 1 or more"):
        predict(tiny_config("T"), SLOW_MEMORY.at(0))


def test_structure_and_retention_can_be_changed():
    config = changed(tiny_config("T(T)T"), "TT(T)", 0.3)
    assert (config.structure, config.retention_ratios, config.num_hidden_layers) == ("TT(T)", [0.3], 3)
    assert changed(config, "TT", 0.3).retention_ratios == []
    with pytest.raises(StructureError):
        changed(config, "T(", 0.3)


def test_the_levels_of_another_structure_have_the_models_router_if_it_is_one():
    config = tiny_config("T(T)T(T)", router=["even", "even"])
    assert changed(config, "T(T(T))T(T)", 0.5).routers == ["even"] * 3
    mixed = tiny_config("T(T)T(T)", router=["even", "subllm"])
    assert changed(mixed, "T(TT)T(T)", 0.5).routers == ["even", "subllm"]
    assert changed(mixed, "TT", None).routers == without_levels(mixed).routers == []
    with pytest.raises(ConfigurationError, match="number of names in router is 2"):
        changed(mixed, "T(T)", 0.5)


def test_a_router_that_does_not_score_saves_the_scorer():
    ours, even = (tiny_config("T(T)T", router=router, retention_ratio=0.5) for router in ("subllm", "even"))
    assert parameters(ours) - parameters(even) == ours.hidden_size
    for phase in PHASES:
        works = [[w for w in phase_work(each, phase, 100) if w.module == "routing"] for each in (ours, even)]
        assert works[0][0].operations > works[1][0].operations == 0
        assert works[0][0].bytes > works[1][0].bytes > 0


def test_the_command_predicts_for_the_table_and_for_this_machine(tiny_checkpoint):
    command = ["--checkpoint", str(tiny_checkpoint), "--tokens", "400"]
    done = run_command(main, *command, "--hardware", "NVIDIA T4")
    unknown = find_hardware(load_hardware(), load_hardware()[-1].name)
    assert unknown == load_hardware()[-1]
    assert done.returncode == (0 if any(row.name == "NVIDIA T4" for row in load_hardware()) else 1)
    here = run_command(main, *command, "--dtype", "float32")
    assert here.returncode == 0, here.stderr
    assert "measured here" in here.stdout
    assert "prefill pays from" in here.stdout
    refused = run_command(main, *command, "--hardware", "abacus")
    assert refused.returncode == 1
    assert "no hardware 'abacus'; known are" in refused.stderr
