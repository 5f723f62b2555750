"""What papers report: what the prediction can and cannot explain."""

import json

import pytest

from analysis.commands.predict import main
from analysis.cost.hardware import find_hardware, load_hardware
from analysis.cost.paper import batch_that_saves, encoder_operations, paper_config, papers
from analysis.cost.sizes import parameters
from subllm.assets import ASSETS
from tests.conftest import run_command

H100 = "NVIDIA H100 SXM"


@pytest.fixture(scope="module")
def on_h100():
    return {paper.key: paper.figures for paper in papers(find_hardware(load_hardware(), H100))}


def only(figures, **wanted):
    """The one figure with these attributes."""
    (found,) = [each for each in figures if all(getattr(each, name) == value for name, value in wanted.items())]
    return found


def test_the_assumed_model_of_subllm_has_the_size_and_the_share_of_tokens_that_the_paper_states():
    config = paper_config()
    assert parameters(config) == pytest.approx(1.3e9, rel=0.05)
    structure = config.parsed_structure
    assert (structure.num_blocks, structure.num_levels) == (24, 2)


@pytest.mark.parametrize("name", [H100, "NVIDIA A100 SXM 80 GB"])
def test_predictions_for_subllm_lie_where_the_note_says(name):
    (subllm, *_) = papers(find_hardware(load_hardware(), name))
    for figure in subllm.figures:
        reported, predicted = figure.reported.low, [ratio.low for ratio in figure.predicted.values()]
        if figure.what == "training":
            assert reported < min(predicted) < reported + 0.12
        elif figure.tokens == 4096:
            assert min(predicted) < reported < 1.05 * max(predicted)
        else:
            assert reported > max(predicted)


def test_both_memory_figures_fit_about_the_same_batch():
    assert batch_that_saves("training") == pytest.approx(5, rel=0.15)
    assert batch_that_saves("inference") == pytest.approx(5, rel=0.15)


def test_a_mixture_of_depths_trains_and_samples_about_as_much_faster_as_reported(on_h100):
    training, sampling = (only(on_h100["mod"], what=what) for what in ("training", "sampling"))
    assert training.reported == (1.6, 1.66)
    assert 1.6 < training.predicted["training"].low < training.predicted["training"].high < 1.05 * 1.64
    assert sampling.reported.low == 1.5
    assert sampling.predicted["decode"].low == pytest.approx(1.9, rel=0.02)
    assert only(on_h100["mod"], what="reading").predicted["prefill"].low == pytest.approx(1.74, rel=0.02)
    assert only(on_h100["mod"], what="cache").predicted["cache"] == (0.5625, 0.5625)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("SUBLLM, 64%", {"prefill": 1.34, "decode": 1.33, "training": 1.32, "cache": 0.75}),
        ("Mixture-of-Depths, 50%", {"prefill": 1.29, "decode": 1.32, "training": 1.27, "cache": 0.75}),
        ("Mixture-of-Depths, 12.5%", {"prefill": 1.74, "decode": 1.60, "training": 1.71, "cache": 0.5625}),
    ],
)
def test_routers_at_the_same_cache_save_about_the_same(system, expected, on_h100):
    found = only(on_h100["equal_cache"], system=system).predicted
    assert {what: ratio.low for what, ratio in found.items()} == pytest.approx(expected, rel=0.025)


@pytest.mark.parametrize(
    ("tokens", "counted", "reported"), [(16384, (1.95, 1.88, 1.77), (2.8, 2.4, 2.2)), (8192, (1.81, 1.77, 1.71), None)]
)
def test_the_operations_of_light_and_heavy_layers_are_those_of_the_papers_formulas(tokens, counted, reported, on_h100):
    figures = [only(on_h100["colt5"], system=f"CoLT5 {size}", tokens=tokens) for size in ("B", "L", "XL")]
    assert [figure.predicted["operations"].low for figure in figures] == pytest.approx(counted, abs=0.006)
    for figure, value in zip(figures, reported or (), strict=bool(reported)):
        assert figure.reported.low == pytest.approx(value, abs=0.05)
    above = [figure.reported.low > figure.predicted["operations"].low for figure in figures]
    assert set(above) == {tokens == 16384}, "the note says which side is larger"
    assert encoder_operations("CoLT5", 1, 1) == pytest.approx(7.25 + 1 / 84)


def test_the_stacks_of_zipformer_m_save_what_their_lengths_say(on_h100):
    operations = only(on_h100["zipformer"], what="operations")
    assert operations.reported.low == pytest.approx(2.7, rel=0.02)
    assert operations.predicted["linear"].low == pytest.approx(16 / 6)
    assert operations.predicted["attention"].low == pytest.approx(4.65, abs=0.01)
    found = only(on_h100["zipformer"], what="all").predicted
    assert found["cache"].low == pytest.approx(0.375, abs=0.001)  # the rest are open groups and last results
    assert found["prefill"].low == pytest.approx(2.63, rel=0.06)
    assert found["training"].low == pytest.approx(2.3, rel=0.03)
    counted = (operations.predicted[part].low for part in ("linear", "attention"))
    assert next(counted) < found["decode"].low < next(counted), "all sequences reach a span together"


def test_every_figure_has_a_source_or_is_ours_alone(on_h100):
    for figure in sum(on_h100.values(), ()):
        assert bool(figure.reported) == bool(figure.source)
        assert figure.reported or figure.predicted


def test_the_command_prints_every_figure_without_a_checkpoint():
    done = run_command(main, "--papers", "--hardware", H100)
    assert done.returncode == 0, done.stderr
    for paper in papers(find_hardware(load_hardware(), H100)):
        for figure in paper.figures:
            start = [figure.system, figure.what, f"{figure.tokens:,}" if figure.tokens else ""]
            (line,) = [line for line in done.stdout.splitlines() if _starts(line, start)]
            assert all(f"{ratio.low:.2f}" in line for what, ratio in figure.predicted.items() if what != "cache")
        assert paper.note[:40] in done.stdout


def _starts(line, parts):
    return " ".join(line.split()).startswith(" ".join(part for part in parts if part))


def test_the_page_has_the_notes_of_the_command():
    words = json.loads((ASSETS / "strings.json").read_text(encoding="utf-8"))
    for paper in papers(load_hardware()[0]):
        assert words[f"paper_note_{paper.key}"]["en"] == paper.note
