"""Predictions from the command line, and where a SUBLLM begins to pay."""

import re
from dataclasses import replace

import pytest

from analysis import AnalysisError
from analysis.commands.predict import main
from analysis.cost.hardware import Hardware, find_hardware, load_hardware
from analysis.cost.paper import paper_config
from analysis.cost.predict import break_even, changed, launch_bound, needed_bytes, predict
from analysis.cost.roofline import PHASES, Scenario, phase_work, speedup
from analysis.cost.sizes import parameters, without_levels
from analysis.figures.cost import predicted_cache
from subllm import ConfigurationError, StructureError
from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
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
    divided = changed(config, "C(T)C", 0.3)
    assert (divided.num_hidden_layers, divided.routers[3], divided.window) == (3, "subllm", 128)
    assert changed(divided, "T(T)", None).window is None
    predicted = tiny_config("T(T)", router="mod", predictor=True)
    assert changed(predicted, "TT", None).routers == []
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


H100 = find_hardware(load_hardware(), "NVIDIA H100 SXM")


def test_a_small_model_on_an_h100_takes_as_long_as_its_launches():
    demo = read_config(ASSETS / "demo")
    for tokens in (512, 1024, 2048, 4096):
        scenario = Scenario(H100, tokens)
        assert 5e-3 < scenario.seconds(demo, "prefill") < 9e-3
        assert 0.95 < speedup(demo, "prefill", scenario) < 1.03
        assert 110 < 1 / scenario.seconds(demo, "decode") < 200
    assert 1.08 < speedup(demo, "decode", Scenario(H100, 512)) < 1.15, "dropped tokens launch fewer blocks"
    assert 0.9 < speedup(demo, "decode", Scenario(H100, 512, 4)) < 1, "of four, one is nearly always kept"
    assert 1.12 < speedup(demo, "prefill", Scenario(H100, 8192, 16)) < 1.205


def test_the_sizes_of_a_cache_are_powers_of_ten_and_not_millionths():
    figure = predicted_cache(tiny_config("T(T)T"), Scenario(H100), [16, 1024])
    assert min(figure.data[0].y) < 1e-3 and figure.layout.yaxis.exponentformat == "power"


def test_the_papers_model_on_an_h100_is_bound_by_its_work():
    config = paper_config()
    reached = replace(H100, operations={"bfloat16": 675e12}, bandwidth=2.65e12)  # expected of kernels, below the peaks
    for hardware in (H100, reached):
        assert 1.25 < speedup(config, "prefill", Scenario(hardware, 4096)) < 1.37
        assert 1.35 < speedup(config, "prefill", Scenario(hardware, 8192)) < 1.5
    assert 12e-3 < Scenario(H100, 4096).seconds(config, "prefill") < 40e-3
    assert 35e-3 < Scenario(reached, 8192).seconds(config, "prefill") < 90e-3
    assert [found.phase for found in launch_bound(config, Scenario(H100, 8192))] == ["decode"]


def test_graphs_take_launching_out_of_decoding_for_both_models():
    demo = read_config(ASSETS / "demo")
    eager, graphs = (Scenario(H100, 512, graphs=graphs) for graphs in (False, True))
    for config in (demo, without_levels(demo)):
        assert graphs.seconds(config, "decode") < eager.seconds(config, "decode") / 3
        assert graphs.seconds(config, "prefill") == eager.seconds(config, "prefill")


def test_a_model_that_is_too_small_is_told_from_which_length_and_batch_on_it_is_not():
    demo = read_config(ASSETS / "demo")
    scenario = Scenario(H100, 512)
    found = {each.phase: each for each in launch_bound(demo, scenario)}
    assert set(found) == set(PHASES)
    prefill = found["prefill"]
    assert prefill.launching == pytest.approx(scenario.seconds(demo, "prefill"))
    assert prefill.working < prefill.launching / 5
    for other, bound in (
        (scenario.at(prefill.tokens - 1), True),
        (scenario.at(prefill.tokens), False),
        (replace(scenario, batch=prefill.batch - 1), True),
        (replace(scenario, batch=prefill.batch), False),
    ):
        assert bound == ("prefill" in [each.phase for each in launch_bound(demo, other)])
    tiny = tiny_config("T(T)T")
    (never,) = [each for each in launch_bound(tiny, scenario) if each.phase == "decode"]
    assert (never.tokens, never.batch) == (None, None)
    assert not launch_bound(demo, Scenario(replace(H100, launch_seconds=0), 512)), "launching is not counted"


def test_the_command_predicts_for_the_table_and_for_this_machine(tiny_checkpoint):
    command = ["--checkpoint", str(tiny_checkpoint), "--tokens", "400"]
    done = run_command(main, *command, "--hardware", "NVIDIA T4")
    unknown = find_hardware(load_hardware(), load_hardware()[-1].name)
    assert unknown == load_hardware()[-1]
    assert done.returncode == (0 if any(row.name == "NVIDIA T4" for row in load_hardware()) else 1)
    here = run_command(main, *command, "--dtype", "float32")
    assert here.returncode == 0, here.stderr
    assert "measured here" in here.stdout
    assert re.search(
        r"^prefill (breaks even at [\d,]+ tokens|is (slower|at least as fast) at every length)", here.stdout, re.M
    )
    plain = run_command(main, *command, "--dtype", "float32", "--structure", "TTTT")
    assert "prefill is at least as fast at every length\n" in plain.stdout, plain.stderr
    small = run_command(main, *command, "--hardware", "NVIDIA H100 SXM", "--graphs")
    assert "prefill is launch-bound: launching its kernels takes" in small.stdout
    refused = run_command(main, *command, "--hardware", "abacus")
    assert refused.returncode == 1
    assert "no hardware 'abacus'; known are" in refused.stderr
