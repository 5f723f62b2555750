"""A run's folder is read as it is, live or finished, and its snapshots become traces."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import AnalysisError
from analysis.figures.training import (
    kept_curves,
    kind_curves,
    level_curves,
    loss_curves,
    quantile_bands,
    speed_curves,
    work_curves,
)
from analysis.figures.words import ENGLISH
from analysis.trace.token_classes import KINDS, kinds_of
from analysis.training.run import load_snapshots, read_run, routing_history, snapshot_trace
from subllm.assets import TRAINED
from subllm.routing import routing_arrays
from subllm.runs.routing_snapshot import RoutingSnapshot
from tests.conftest import byte_tokenizer, tiny_model

PROMPTS = ["the cat sat on a mat", "2 dogs, <b>3</b> moons"]


def write_run(folder, steps=3, router=None):
    """A run of a random model, with the files that training writes; its models by step."""
    fields = {} if router is None else {"router": router}
    tokenizer = byte_tokenizer()
    texts = [tokenizer(text, return_offsets_mapping=True) for text in PROMPTS]
    models = {}
    for step in range(0, 10 * steps, 10):
        torch.manual_seed(step)
        models[step] = tiny_model("T(T(T)T)T", vocab_size=len(tokenizer), **fields)
        RoutingSnapshot.take(models[step], [text["input_ids"] for text in texts], step).save(folder / "snapshots")
    about = {
        "config": {"steps": 100, "batch_size": 2, "length": 16, "prompts": PROMPTS},
        "structure": "T(T(T)T)T",
        "retention_ratios": [0.64, 0.64],
        "parameters": 1234,
        "offsets": [text["offset_mapping"] for text in texts],
    } | ({} if router is None else {"routers": router})
    (folder / "run.json").write_text(json.dumps(about))
    lines = [{"step": step, "loss": 5 - step / 10, "tokens_per_second": 100.0} for step in range(1, 21)]
    lines.append({"step": 20, "eval_loss": 4.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "lo')
    return models


@pytest.fixture(params=[None, ["even", "subllm"]], ids=["routers not said", "mixed routers"])
def run(tmp_path, request):
    models = write_run(tmp_path, router=request.param)
    return read_run(tmp_path), models


def test_a_run_is_read_while_its_last_line_is_being_written(run):
    found, _ = run
    assert found.step == 20
    assert found.log["loss"].dropna().iloc[-1] == 3.0
    assert found.log["eval_loss"].dropna().tolist() == [4.0]
    assert [path.stem for path in found.snapshots] == ["step-00000000", "step-00000010", "step-00000020"]


def test_a_snapshot_as_a_trace_is_the_models_own_routing(run):
    found, models = run
    for snapshot in load_snapshots(found):
        for number, prompt in enumerate(PROMPTS):
            trace = snapshot_trace(found, snapshot, number)
            ids = torch.tensor(trace.prompt.token_ids)
            assert trace.prompt.text == "".join(trace.prompt.pieces) == prompt
            with torch.no_grad():
                output = models[snapshot.step](ids[None], output_routing=True)
            expected = routing_arrays(output.routing, len(ids))
            for name in ("reached", "kept", "edited", "thresholds"):
                np.testing.assert_array_equal(getattr(trace.routing, name), expected[name], err_msg=name)
            for name in ("weights", "scores", "stream_norm", "difference_norm", "contribution_norm"):
                assert getattr(trace.routing, name).dtype == np.float32
                np.testing.assert_allclose(getattr(trace.routing, name), expected[name], rtol=2e-3, atol=1e-4)
            config = models[snapshot.step].config
            assert trace.routing.routers.tolist() == config.routers
            assert trace.routing.parents.tolist() == list(config.parsed_structure.parents)
            assert trace.routing.block_levels.tolist() == list(config.parsed_structure.block_levels)
            assert trace.provenance.checkpoint == f"{found.folder.name}, step {snapshot.step}"
            loss = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[1:])
            assert trace.perplexity == pytest.approx(float(loss.exp()), rel=1e-2)
            absent = ("blocks", "predictions", "continuation", "agreement", "costs")
            assert not any(getattr(trace, name) for name in absent), "what a snapshot does not record is absent"


def test_one_prompt_at_two_steps_has_one_subject_and_two_runs(run):
    found, _ = run
    first, second = (snapshot_trace(found, snapshot, 0) for snapshot in load_snapshots(found)[:2])
    assert first.subject == second.subject != snapshot_trace(found, load_snapshots(found)[0], 1).subject
    assert first.run != second.run


def test_history_counts_what_the_snapshots_keep(run):
    found, _ = run
    snapshots = load_snapshots(found)
    history = routing_history(found, snapshots)
    assert history.steps.tolist() == [0, 10, 20]
    assert (history.to_last[-1] == 1).all()
    for k, snapshot in enumerate(snapshots):
        np.testing.assert_allclose(history.retention[k, 0], snapshot.kept[0].mean())
        inner = snapshot.kept[1].sum() / max(snapshot.kept[0].sum(), 1)
        np.testing.assert_allclose(history.retention[k, 1], inner)
        np.testing.assert_array_equal(history.thresholds[k], snapshot.thresholds)
        if found.routers[0] == "subllm":
            assert history.scores[k, 0, 2] == pytest.approx(np.median(snapshot.scores[0].astype(float)), abs=1e-3)
        else:
            assert np.isnan(history.scores[k, 0]).all() and np.isnan(history.thresholds[k, 0])
    figures_made = [
        loss_curves({"<b>": found}), speed_curves({"a": found}), kind_curves(history, 1),
        level_curves(history, history.retention, ["one", "two"], "share", [0.64]),
        work_curves({"a": found}, {"a": history}), kept_curves({"a": found}, {"a": history}),
        quantile_bands(history.steps, history.scores[:, 0], "score", history.thresholds[:, 0]),
    ]  # fmt: skip
    lines = [trace.y for trace in figures_made[-1].data if trace.name == "threshold"]
    np.testing.assert_array_equal(lines, [history.thresholds[:, 0]] if found.routers[0] == "subllm" else [])
    assert all(figure.data for figure in figures_made)
    assert "<b>" not in str(figures_made[0].data[0].name)
    assert figures_made[3].layout.showlegend is None
    (kept,) = kept_curves({"a": found}, {"a": history}).data
    assert kept.y.tolist() == history.retention.mean(1).tolist()
    assert kept.x.tolist() == (history.steps * found.config["batch_size"] * found.config["length"]).tolist()
    assert ENGLISH["figure_step"] == figures_made[1].layout.xaxis.title.text
    converted = replace(found, config=found.config | {"converted": True})
    titles = [loss_curves(each).layout.yaxis.title.text for each in ({"a": found}, {"a": found, "b": converted})]
    assert titles == ["loss, nats per token", "loss"]


def test_shares_of_kinds_are_of_the_tokens_that_reach_the_level(run):
    found, _ = run
    snapshots = load_snapshots(found)
    history = routing_history(found, snapshots)
    for k, snapshot in enumerate(snapshots):
        traces = [snapshot_trace(found, snapshot, number) for number in range(len(PROMPTS))]
        for level in range(2):
            decisions = {kind: [] for kind in KINDS}
            for trace in traces:
                for token, kind in enumerate(kinds_of(trace.prompt.pieces.tolist())):
                    if trace.routing.reached[level, token]:
                        decisions[kind].append(trace.routing.kept[level, token])
            expected = [np.mean(each) if each else np.nan for each in decisions.values()]
            np.testing.assert_allclose(history.by_kind[k, level], expected)
    assert (history.by_kind[:, 1] > 0).any() and not snapshots[0].reached[1].all()


ABOUT = {
    "no steps": ("config", "steps", None), "text for steps": ("config", "steps", "100"),
    "no number of steps": ("config", "steps", float("nan")), "endless": ("config", "steps", float("inf")),
    "no prompts": ("config", "prompts", None), "one text for prompts": ("config", "prompts", "text"),
    "text for a ratio": (None, "retention_ratios", ["0.5", "0.5"]), "one ratio": (None, "retention_ratios", [0.5]),
    "number for ratios": (None, "retention_ratios", 0.5), "no structure": (None, "structure", None),
    "broken structure": (None, "structure", "T(T"), "number for the structure": (None, "structure", 7),
    "text for parameters": (None, "parameters", "many"), "text for offsets": (None, "offsets", [["ab"], ["cd"]]),
    "half offsets": (None, "offsets", [[[1]], [[2]]]), "fewer offsets": (None, "offsets", [[[0, 1]]]),
    "text for the model": ("config", "model", "x"), "heads in words": ("config", "model", {"num_attention_heads": "a"}),
    "another structure": ("config", "model", {"structure": "T(T)T"}),
    "C without sizes": (None, "structure", "T(C(T)T)T"),
    "number for routers": (None, "routers", 5), "truth for parameters": (None, "parameters", True),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["", "[]", "[" * 100_000, '{"config": []}', '"steps"', '{"conf', "\0" * 99, *ABOUT])
def test_a_damaged_description_of_a_run_is_said(tmp_path, run, kind):
    text = kind
    if kind in ABOUT:
        inside, name, value = ABOUT[kind]
        about = json.loads((tmp_path / "run.json").read_text())
        (about[inside] if inside else about)[name] = value
        text = json.dumps(about)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(AnalysisError, match=r"run.json of the run .* is damaged \(.*\)\. Give the run's command again"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "line",
    ['{"step": null}', '{"step": "one"}', '{"loss": 1.0}', "7", "[" * 100_000, '{"step": 1, "loss": "low"}',
     '{"step": 3, "loss": null}', "", "\0\0", '{"step": 1', '{"step": true}'],
)  # fmt: skip
def test_damaged_lines_of_a_log_are_left_out_and_counted(tmp_path, run, line):
    whole, path = run[0].log, tmp_path / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], f"{line}\n", *lines[5:]]))
    found = read_run(tmp_path)
    assert found.damaged == 1 and found.log.equals(whole)
    assert run[0].damaged == 0


def test_what_is_no_run_is_said(tmp_path, run):
    with pytest.raises(AnalysisError, match="not the folder of a training run"):
        read_run(tmp_path / "nowhere")
    found, _ = run
    found.offsets[0].pop()
    with pytest.raises(AnalysisError, match="has other prompts or levels"):
        load_snapshots(found)
    found.snapshots[0].write_bytes(b"PK")
    with pytest.raises(AnalysisError, match="not a routing snapshot"):
        load_snapshots(found)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kept", lambda array: array[:, 1:]),
        ("scores", lambda array: array[:1]),
        ("first", lambda array: array.astype(str)),
        ("bypass_scale", lambda array: array.ravel()),
        ("surprisal", lambda array: array.astype(bool)),
    ],
)
def test_a_snapshot_whose_arrays_do_not_fit_together_is_no_snapshot(run, name, change):
    found, _ = run
    with np.load(found.snapshots[1]) as content:
        arrays = dict(content)
    np.savez(found.snapshots[1], **(arrays | {name: change(arrays[name])}))
    with pytest.raises(AnalysisError, match=f"not a routing snapshot: {name} has the shape"):
        load_snapshots(found)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_among_the_files_of_a_run_is_not_waited_for(run, tmp_path):
    os.mkfifo(tmp_path / "snapshots" / "step-00000099.npz")
    with pytest.raises(AnalysisError, match="it is not a regular file"):
        load_snapshots(read_run(tmp_path))
    (tmp_path / "run.json").unlink()
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(AnalysisError, match="it is not a regular file"):
        read_run(tmp_path)


def test_many_levels_have_no_legend_and_say_their_names_under_the_pointer():
    run = read_run(TRAINED["colt5"])
    history = routing_history(run, load_snapshots(run))
    names = [f"<{number}>" for number in range(36)]
    figure = level_curves(history, history.retention, names, "share")
    assert figure.layout.showlegend is False and len(figure.data) == 36
    assert all("%{fullData.name}" in line.hovertemplate for line in figure.data)
    assert not any("<" in line.name for line in figure.data)
