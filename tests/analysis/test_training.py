"""A run's folder is read as it is, live or finished, and its snapshots become traces."""

import json

import numpy as np
import pytest
import torch

from analysis import AnalysisError, figures
from analysis.training import (
    jaccard,
    kinds_of,
    load_snapshots,
    read_run,
    routing_history,
    snapshot_trace,
)
from analysis.training_figures import kind_curves, level_curves, loss_curves, quantile_bands, speed_curves
from subllm.snapshots import RoutingSnapshot
from tests.conftest import byte_tokenizer, tiny_model

PROMPTS = ["the cat sat on a mat", "2 dogs, <b>3</b> moons"]


def write_run(folder, steps=3):
    """A run of a random model, with the files that training writes; its models by step."""
    tokenizer = byte_tokenizer()
    texts = [tokenizer(text, return_offsets_mapping=True) for text in PROMPTS]
    models = {}
    for step in range(0, 10 * steps, 10):
        torch.manual_seed(step)
        models[step] = tiny_model("T(T(T)T)T", vocab_size=len(tokenizer))
        RoutingSnapshot.take(models[step], [text["input_ids"] for text in texts], step).save(folder / "snapshots")
    about = {
        "config": {"steps": 100, "batch_size": 2, "length": 16, "prompts": PROMPTS},
        "structure": "T(T(T)T)T",
        "retention_ratios": [0.64, 0.64],
        "parameters": 1234,
        "offsets": [text["offset_mapping"] for text in texts],
    }
    (folder / "run.json").write_text(json.dumps(about))
    lines = [{"step": step, "loss": 5 - step / 10, "tokens_per_second": 100.0} for step in range(1, 21)]
    lines.append({"step": 20, "eval_loss": 4.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "lo')
    return models


@pytest.fixture
def run(tmp_path):
    models = write_run(tmp_path)
    return read_run(tmp_path), models


def test_a_run_is_read_while_its_last_line_is_being_written(run):
    found, _ = run
    assert found.step == 20 and found.title == "SUBLLM"
    assert found.log["loss"].dropna().iloc[-1] == 3.0
    assert found.log["eval_loss"].dropna().tolist() == [4.0]
    assert [path.stem for path in found.snapshots] == ["step-00000000", "step-00000010", "step-00000020"]


def test_a_snapshot_as_a_trace_is_the_models_own_routing(run):
    found, models = run
    for snapshot in load_snapshots(found):
        for number, prompt in enumerate(PROMPTS):
            trace = snapshot_trace(found, snapshot, number)
            assert trace.prompt == prompt and "".join(trace.pieces) == prompt
            with torch.no_grad():
                output = models[snapshot.step](torch.tensor(trace.token_ids)[None], output_routing=True)
            for span, record in enumerate(output.routing):
                assert trace.kept[span].nonzero()[0].tolist() == record.kept[0].tolist()
                np.testing.assert_allclose(
                    trace.scores[span][trace.present[span]], record.scores[0], rtol=2e-3, atol=1e-4
                )
            expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], torch.tensor(trace.token_ids[1:]))
            assert trace.perplexity == pytest.approx(float(expected.exp()), rel=1e-2)


def test_history_counts_what_the_snapshots_keep(run):
    found, _ = run
    snapshots = load_snapshots(found)
    history = routing_history(found, snapshots)
    assert history.steps.tolist() == [0, 10, 20]
    assert (history.to_last[-1] == 1).all() and np.isnan(history.to_before[0]).all()
    np.testing.assert_allclose(history.to_before[-1], history.to_last[-2])
    for k, snapshot in enumerate(snapshots):
        np.testing.assert_allclose(history.retention[k, 0], snapshot.kept[0].mean())
        inner = snapshot.kept[1].sum() / max(snapshot.kept[0].sum(), 1)
        np.testing.assert_allclose(history.retention[k, 1], inner)
        assert history.scores[k, 0, 2] == pytest.approx(np.median(snapshot.scores[0].astype(float)), abs=1e-3)
    figures_made = [
        loss_curves({"<b>": found}), speed_curves({"a": found}), kind_curves(history, 0),
        level_curves(history, history.retention, ["one", "two"], "share", [0.64]),
        quantile_bands(history.steps, history.scores[:, 0], "score", 0.0),
    ]  # fmt: skip
    assert all(figure.data for figure in figures_made)
    assert "<b>" not in str(figures_made[0].data[0].name)
    assert figures.ENGLISH["figure_step"] == figures_made[1].layout.xaxis.title.text


def test_overlap_of_sets():
    first = np.asarray([True, True, False, False])
    assert jaccard(first, np.asarray([True, False, True, False])) == pytest.approx(1 / 3)
    assert jaccard(first, first) == 1
    assert jaccard(~(first | ~first), ~(first | ~first)) == 1


def test_kinds_of_tokens():
    pieces = ["The", " cat", "s", " sat", ",", " 2", "5", " ", "\n", "Mat", "é"]
    assert kinds_of(pieces) == [
        "beginning", "beginning", "continuation", "beginning", "punctuation", "digit", "digit", "space", "space",
        "beginning", "continuation",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "[]"),
        ("run.json", "[" * 100_000),
        ("run.json", '{"config": []}'),
        ("run.json", '"steps"'),
        ("run.json", None),
        ("log.jsonl", '{"step": null}\n'),
        ("log.jsonl", '{"step": "one"}\n'),
        ("log.jsonl", '{"loss": 1.0}\n'),
        ("log.jsonl", "7\n"),
        ("log.jsonl", "[" * 100_000 + "\n"),
        ("log.jsonl", '{"step": 1, "loss": "low"}\n'),
    ],
)
def test_a_damaged_run_is_said(tmp_path, run, name, text):
    if text is None:  # without the number of steps
        about = json.loads((tmp_path / name).read_text())
        del about["config"]["steps"]
        text = json.dumps(about)
    (tmp_path / name).write_text(text)
    with pytest.raises(AnalysisError, match="not the folder of a training run"):
        read_run(tmp_path)


def test_what_is_no_run_is_said(tmp_path, run):
    with pytest.raises(AnalysisError, match="not the folder of a training run"):
        read_run(tmp_path / "nowhere")
    found, _ = run
    found.offsets[0].pop()
    with pytest.raises(AnalysisError, match="of other prompts or levels"):
        load_snapshots(found)
    found.snapshots[0].write_bytes(b"PK")
    with pytest.raises(AnalysisError, match="not a routing snapshot"):
        load_snapshots(found)
