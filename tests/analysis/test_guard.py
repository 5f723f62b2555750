"""Memory that runs out anywhere, and tokens that a model does not know, end a run with a message that helps."""

import json

import numpy as np
import pytest
import torch

from analysis import RunStopped
from analysis.cost.calibration import this_machine
from analysis.cost.comparison import compare
from analysis.debug.attention import attention_of
from analysis.debug.attribution import attribute
from analysis.debug.edits import parse_edits
from analysis.debug.generation import Generation
from analysis.debug.intervene import intervene, run_unedited
from analysis.debug.lens import confidence, logit_lens
from analysis.debug.search import estimate_effects, measure_effects
from analysis.debug.target import Question
from analysis.guard import full_device_reported, ids_on_device, out_of_memory_reported
from analysis.quality.evaluate import held_out_blocks
from analysis.run import RunOptions, record_trace
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import read_prompt
from subllm import PromptError
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.text.packed import pack
from tests.conftest import tiny_model

TEXT = "the cat sat on the mat"


@pytest.fixture
def checkpoint(tiny_checkpoint):
    """A checkpoint of this test's own, since its modules get hooks."""
    return load_checkpoint(tiny_checkpoint, "cpu", "float32")


def runs_out(module, after=0):
    """Make a module run out of memory once it has run some times."""
    left = [after]

    def hook(*_):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    module.register_forward_pre_hook(hook)


def read(checkpoint):
    return read_prompt(TEXT, checkpoint.tokenizer, 512)


ANALYSES = {
    "trace": lambda each, prompt: record_trace(each, prompt, RunOptions(new_tokens=2)),
    "trace with costs": lambda each, prompt: record_trace(each, prompt, RunOptions(0), dense=load_dense(each)),
    "generation": lambda each, prompt: Generation(each.model, prompt),
    "unedited run": run_unedited,
    "lens": lambda each, prompt: logit_lens(each.model, prompt.token_ids, 2),
    "confidence": lambda each, prompt: confidence(each.model, prompt.token_ids),
    "attention": lambda each, prompt: attention_of(each.model, prompt.token_ids, 2),
    "attribution": lambda each, prompt: attribute(each.model, prompt.token_ids, Question(3), "input x gradient"),
    "comparison": lambda each, prompt: compare(
        each.model, load_dense(each).model, torch.tensor(prompt.token_ids)[None].repeat(1, 12), 1
    ),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, "block") for name in ANALYSES] + [(name, "head") for name in ANALYSES if name != "attention"],
)
def test_an_analysis_that_runs_out_of_memory_says_what_helps(checkpoint, name, where):
    prompt, model = read(checkpoint), checkpoint.model
    runs_out(model.model.layers[0] if where == "block" else model.lm_head)
    with pytest.raises(RunStopped, match=r"tokens \(CUDA out of memory.*choose a smaller dtype"):
        ANALYSES[name](checkpoint, prompt)


EDITED = {
    "edits": lambda run: intervene(run, parse_edits("dense @1")),
    "estimates": lambda run: estimate_effects(run, 1),
    "search": lambda run: [*measure_effects(run, estimate_effects(run, 1), [0])],
}


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("name", EDITED)
def test_an_edited_run_that_runs_out_of_memory_says_what_helps(checkpoint, name, passes):
    run = run_unedited(checkpoint, read(checkpoint), [7], "tiny")
    runs_out(checkpoint.model.lm_head, passes)
    with pytest.raises(RunStopped, match="choose a smaller dtype"):
        EDITED[name](run)


def test_a_measurement_that_runs_out_of_memory_names_the_device(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(RunStopped, match=r"memory of cpu ran out \(CUDA error: out of memory\)"):
        this_machine("cpu", "float32")


@pytest.mark.parametrize("error", [RuntimeError("a shape"), ValueError("out of memory")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error), match=str(error)), full_device_reported(torch.device("cpu")):
        raise error
    with pytest.raises(type(error), match=str(error)), out_of_memory_reported(3, tiny_model("TT")):
        raise error


@pytest.mark.parametrize(
    ("device", "dtype", "advice"),
    [
        ("cpu", torch.float32, "Shorten the prompt, or choose a smaller dtype."),
        ("cpu", torch.bfloat16, "Shorten the prompt, or end other programs."),
        ("meta", torch.float32, "Shorten the prompt, or choose a smaller dtype."),
        ("meta", torch.float16, "Shorten the prompt, end other programs on that device, or choose the CPU."),
    ],
)
def test_the_advice_can_be_followed(device, dtype, advice):
    model = tiny_model("TT").to(device, dtype)
    with pytest.raises(RunStopped) as caught, out_of_memory_reported(7, model):
        raise MemoryError
    assert str(caught.value) == f"Memory ran out on a prompt of 7 tokens (MemoryError). {advice}"


@pytest.mark.parametrize("token", [97, -1, 1 << 40])
def test_a_token_that_the_model_does_not_know_is_refused_on_the_host(token):
    model = tiny_model("T(T)T").to("meta")  # where nothing can be read back
    assert ids_on_device(model, [0, 96]).shape == (1, 2)
    with pytest.raises(PromptError, match=f"token id {token}, and the model has embeddings for the ids 0 to 96"):
        ids_on_device(model, [5, token])


@pytest.mark.parametrize("name", [name for name in ANALYSES if name != "comparison"])
def test_every_analysis_refuses_it(checkpoint, name):
    ids = np.asarray([5, 9, checkpoint.model.config.vocab_size, 7])
    unknown = Prompt("abcd", ids, np.arange(4), np.arange(4) + 1, np.asarray(list("abcd")))
    with pytest.raises(PromptError, match=f"token id {ids[2]}"):
        ANALYSES[name](checkpoint, unknown)


def test_texts_to_evaluate_on_are_checked_too(checkpoint, tmp_path):
    checkpoint.tokenizer.add_tokens(["<odd>"])
    (tmp_path / "text.txt").write_text("the cat <odd> sat on the mat " * 20)
    texts = [f"{number} cats <odd> sat on the mat" for number in range(100)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packed = pack([tmp_path / "text.jsonl"], checkpoint.tokenizer, tmp_path / "packed", held_out=0.3)
    for path in (tmp_path / "text.txt", packed.folder):
        with pytest.raises(PromptError, match=f"token id {checkpoint.model.config.vocab_size}"):
            held_out_blocks(checkpoint, [path], 16, 2)


def test_an_answer_and_a_chosen_token_are_checked_too(checkpoint):
    beyond = checkpoint.model.config.vocab_size
    with pytest.raises(PromptError, match="token id"):
        run_unedited(checkpoint, read(checkpoint), [beyond], "tiny")
    text = Generation(checkpoint.model, read(checkpoint))
    with pytest.raises((PromptError, IndexError)):
        text.step(beyond)
