"""Quality against savings: a table and a picture that several runs of the command fill."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from analysis import AnalysisError
from analysis.commands.tradeoff import main
from analysis.quality.tradeoff import read_curves
from tests.conftest import run_command


@pytest.fixture(scope="module")
def measured(tiny_checkpoint, tmp_path_factory):
    """Folder of a result for two names, and what the command printed last."""
    folder = tmp_path_factory.mktemp("tradeoff")
    text = folder / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"{n}: the tide <b>falls</b> at noon."}) for n in range(600)))
    for name, retentions in (("one", (0.5, 0.8)), ("a <b>&", (0.64,)), ("one", (0.5, 0.9))):
        done = run_command(
            main, "--checkpoint", tiny_checkpoint, "--name", name, "--data", text, "--length", 32, "--blocks", 4,
            "--prompt-tokens", 64, "--repeats", 1, "--retentions", *retentions, "--out", folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_checkpoint_is_measured_anew_and_others_stay(measured):
    folder, said = measured
    curves = read_curves(folder / "tradeoff.json")
    assert [(curve.name, [point.asked for point in curve.points]) for curve in curves] == [
        ("a <b>&", [0.64]), ("one", [0.5, 0.9]),
    ]  # fmt: skip
    assert (folder / "tradeoff.md").read_text() == said.removesuffix("\n")
    assert all(curve.tokens == 4 * 32 and curve.prompt == 64 for curve in curves)


def test_what_was_asked_is_kept_and_more_tokens_cost_more(measured):
    few, many = read_curves(measured[0] / "tradeoff.json")[1].points
    assert few.limit > many.limit > 1
    for point in (few, many):
        assert point.kept == pytest.approx([point.asked] * 2, abs=0.15)


def test_the_picture_shows_every_point_and_names_are_text(measured):
    root = ET.fromstring((measured[0] / "tradeoff.svg").read_text())
    circles = root.findall("{*}circle")
    assert len(circles) == 2 * 3 + 2  # measured and counted, and the legend
    assert "a <b>&" in {text.text for text in root.findall("{*}text")}
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)


@pytest.mark.parametrize("length", [1, 513])
def test_sequences_that_the_model_cannot_predict_on_are_refused(tiny_checkpoint, tmp_path, length):
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": f"{n} tides"}) for n in range(600)))
    done = run_command(
        main, "--checkpoint", tiny_checkpoint, "--name", "x", "--data", tmp_path, "--length", length, "--blocks", 2,
        "--prompt-tokens", 64, "--repeats", 1, "--retentions", 0.5,
    )  # fmt: skip
    assert done.returncode == 1 and f"2 blocks of {length} tokens; give 1 block or more, of 2 to 512" in done.stderr


def test_a_file_that_is_no_result_is_said(tmp_path):
    (tmp_path / "tradeoff.json").write_text("[{}]")
    with pytest.raises(AnalysisError, match=re.escape("delete it to measure again")):
        read_curves(tmp_path / "tradeoff.json")
