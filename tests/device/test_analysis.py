"""Every analysis gives the CPU's numbers on any device, and so do the app's own runs."""

import copy
import dataclasses
from enum import Enum

import numpy as np
import pytest
import torch

from analysis.cost.comparison import compare
from analysis.debug.attention import attention_of
from analysis.debug.attribution import attribute
from analysis.debug.attribution_methods import METHODS
from analysis.debug.edits import parse_edits
from analysis.debug.generation import Generation, Sampling
from analysis.debug.intervene import intervene, run_unedited
from analysis.debug.lens import confidence, logit_lens
from analysis.debug.level_states import level_states
from analysis.debug.search import estimate_effects, measure_effects
from analysis.debug.target import Held, Question
from analysis.guard import silent
from analysis.quality.evaluate import at_retention
from analysis.quality.needles import needles
from analysis.run import RunOptions, record_trace
from app import engine
from subllm.checkpoints.base import from_llama
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.convert.distillation import AdaptOptions, Distillation
from subllm.convert.fidelity import measure_fidelity
from subllm.convert.scorers import calibrate, fit_scorers
from subllm.routing import Replay

from . import CLOSE, GRAPHS, NAME, counting
from .pretend import books

TEXT = "the cat sat on the mat and then the dog sat"
EDITS = ("keep 0-4@1", "drop 3-5@1; keep 2@2", "threshold 0.2@1", "retention 0.5@2", "retention 0.7@*", "dense @1")
MEASURED = {"seconds", "whole_seconds", "peak_bytes", "busy", "joules", "costs", "provenance", "resident_bytes"}
MEASURED |= {"step_seconds", "module_seconds", "checkpoint", "prefill", "ids"}


def same(here, there, path="result"):
    """Compare two results field by field, apart from what is measured or names the device."""
    if isinstance(here, torch.Tensor):
        here, there = here.cpu().numpy(), there.cpu().numpy()
    if isinstance(here, np.ndarray):
        assert here.dtype == there.dtype, path
        if here.dtype.kind == "f":
            np.testing.assert_allclose(there, here, rtol=2e-3, atol=CLOSE.get("atol", 2e-5), err_msg=path)
        else:
            np.testing.assert_array_equal(there, here, err_msg=path)
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=2e-3, abs=CLOSE.get("atol", 2e-5), nan_ok=True), path
    elif dataclasses.is_dataclass(here) and not isinstance(here, Enum):
        for field in dataclasses.fields(here):
            if field.name not in MEASURED:
                same(getattr(here, field.name), getattr(there, field.name), f"{path}.{field.name}")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), path
        for number, pair in enumerate(zip(here, there, strict=True)):
            same(*pair, f"{path}[{number}]")
    elif isinstance(here, dict):
        assert list(here) == list(there), path
        for key, value in here.items():
            same(value, there[key], f"{path}[{key!r}]")
    else:
        assert here == there, path


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint):
    """A checkpoint, and the same one on the device."""
    return [load_checkpoint(tiny_checkpoint, device, "float32") for device in ("cpu", NAME)]


@pytest.fixture(scope="module")
def traces(checkpoints):
    return [
        record_trace(each, TEXT, RunOptions(new_tokens=5), dense=load_dense(each), name="tiny") for each in checkpoints
    ]


@pytest.fixture(scope="module")
def unedited(checkpoints, traces):
    return [run_unedited(each, traces[0].prompt, [7, 9], "tiny") for each in checkpoints]


def on_both(checkpoints, run):
    """Run something for both, and compare; returns the CPU's result."""
    here, there = (run(each) for each in checkpoints)
    same(here, there)
    return here


def test_a_trace(traces):
    same(*traces)
    assert traces[1].costs.subllm.cache_bytes == traces[0].costs.subllm.cache_bytes


def test_edited_runs(unedited, checkpoints):
    for text in EDITS:
        on_both(unedited, lambda run, text=text: intervene(run, parse_edits(text)))


@pytest.mark.parametrize("level", [1, 2])
def test_the_search_for_decisions(unedited, level):
    def run(each):
        effects = estimate_effects(each, level)
        *_, measured = measure_effects(each, effects, range(min(4, len(effects.tokens))))
        return measured

    on_both(unedited, run)


def test_the_lens_and_attention(checkpoints, traces):
    ids = traces[0].prompt.token_ids
    for override in (False, True):

        def replay(each, override=override):
            routing = traces[0].routing
            if not override:
                return None
            return Replay(*(torch.tensor(array, device=each.model.device) for array in (routing.kept, routing.weights)))

        for token in (0, len(ids) // 2, len(ids) - 1):
            on_both(checkpoints, lambda each, token=token: logit_lens(each.model, ids, token, replay(each)))
            on_both(checkpoints, lambda each, token=token: attention_of(each.model, ids, token, replay(each)))
        on_both(checkpoints, lambda each: confidence(each.model, ids, override=replay(each)))
    for level in traces[0].routing.levels:
        on_both(checkpoints, lambda each, level=level: level_states(each.model, ids, level, [1, 4], replay(each)))


@pytest.mark.parametrize("held", list(Held))
@pytest.mark.parametrize("level", [None, 1])
def test_attributions(checkpoints, traces, level, held):
    ids = traces[0].prompt.token_ids
    token = int(np.flatnonzero(traces[0].routing.reached[0])[-1])
    question = Question(token, level)
    for method in METHODS:
        on_both(checkpoints, lambda each, m=method: attribute(each.model, ids, question, m, held, steps=3))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 0.95, 20, 1.2, seed=4)], ids=["greedy", "sampling"])
def test_generation_with_tokens_taken_back(checkpoints, traces, sampling):
    def run(each):
        text = Generation(each.model, traces[0].prompt, sampling, tuple(parse_edits("dense @1")))
        for _ in range(4):
            text.step()
        text.take_back(2)
        text.step(5)
        return text.tokens

    on_both(checkpoints, run)


def test_the_comparison_counts_what_the_cpu_counts(checkpoints):
    ids = torch.randint(1, 90, (2, 96), generator=torch.Generator().manual_seed(0))

    def run(each):
        return compare(each.model, load_dense(each).model, ids.to(each.model.device), 1)

    here, there = (run(each) for each in checkpoints)
    for name in ("retention", "prefill_limit", "cache_bytes", "level_bytes", "growth"):
        same(getattr(here, name), getattr(there, name), name)
    assert there.graphs is GRAPHS and not here.graphs
    timed = iter(here.decode_blocks)
    assert all(blocks in timed for blocks in there.decode_blocks), "without tokens with which graphs are captured"
    assert (
        len(here.decode_blocks) - 2 * len(there.level_bytes)
        <= len(there.decode_blocks)
        == len(there.seconds["dense decode"])
    )
    all_timed = len(there.decode_blocks) == len(here.decode_blocks)
    assert all_timed or GRAPHS
    assert there.decode_limit == pytest.approx(here.decode_limit, rel=2e-3 if all_timed else 0.02)


def test_retention_needles_and_fidelity(checkpoints):
    blocks = torch.randint(1, 90, (3, 40), generator=torch.Generator().manual_seed(1))
    on_both(checkpoints, lambda each: measure_fidelity(each.model, load_dense(each).model, blocks))
    on_both(checkpoints, lambda each: at_retention(each.model, blocks, 0.5).thresholds)
    on_both(checkpoints, lambda each: needles(each, load_dense(each), 180, [0.0, 0.7], 2))


def test_a_conversion_and_its_steps(checkpoints):
    """Fitted on the device, trained there, and set to its thresholds there."""
    batches = list(torch.randint(1, 90, (2, 2, 48), generator=torch.Generator().manual_seed(2)))

    def run(each):
        dense = copy.deepcopy(load_dense(each).model)
        model = from_llama(dense, "TT(T(T)T)T", 0.6)
        directions = fit_scorers(model, dense, batches)
        assert all(direction.device == dense.device for direction in directions)
        fitted = [router.weight.detach().clone() for router in model.model.subsamplers]
        options = AdaptOptions(steps=4, rank=2, precision="float32")
        distillation = Distillation(model, dense, directions, options).to(dense.device)
        losses, shares = [], []
        optimizer = torch.optim.AdamW([p for p in distillation.parameters() if p.requires_grad], lr=1e-3)
        for step, batch in enumerate(batches):
            torch.manual_seed(step)
            loss = distillation(batch.to(dense.device))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            shares.append(distillation.control_retention(step))
        calibrate(distillation.model, list(distillation.directions), batches)
        return fitted, losses, shares, [weight.detach() for weight in distillation.scorers.values()]

    on_both(checkpoints, run)


def test_the_app_runs_on_it(tiny_checkpoint):
    """Its queue, models and stores, as a page uses them."""

    def use(device):
        model = engine.ModelSpec("tiny", tiny_checkpoint, device, "float32")
        recipe = engine.Recipe(TEXT, False, model)
        *_, (trace, _) = engine.run(recipe, RunOptions(new_tokens=3), silent, truncate=False, limit=99)
        *_, outcome = engine.edited(model, trace, " the", parse_edits("dense @1"), silent, 99)
        text = engine.Text(model, trace.prompt, Sampling(), (), dense=False)
        *_, (written,) = engine.write([text], 3, silent)
        return trace, outcome, written.tokens, engine.follow(model, trace, 2, silent)[0]

    on_both(["cpu", NAME], use)


@counting
def test_a_new_token_is_read_from_the_device_in_few_pieces(checkpoints, traces):
    """Its probabilities and its routing; beside one wait for each level that it reaches, and two to take the time."""
    checkpoint = checkpoints[1]
    text = Generation(checkpoint.model, traces[0].prompt)
    for _ in range(4):
        text.step()
    with books() as token:
        text.step()
    assert sum(token.waits.values()) <= checkpoint.model.config.parsed_structure.num_levels + 4, token.waits
    assert sum(token.copies.values()) <= 2, token.copies
