"""What is copied from a page makes again what the page shows: every command is run, and all Python."""

import contextlib
import io
import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from analysis import Trace
from analysis.corpus.run import run_corpus
from analysis.corpus.schema import CorpusRun, Options
from analysis.corpus.summary import Summary
from analysis.cost.hardware import load_hardware
from analysis.cost.predict import changed, predict
from analysis.cost.roofline import Scenario
from analysis.debug.edits import parse_edits
from analysis.debug.generation import Generation, Sampling
from analysis.debug.intervene import intervene, run_unedited
from analysis.debug.rules import Rule
from analysis.report.again import FOLDER, commands, located
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from app import command, reproduce
from app.engine import ModelSpec, Place, Recipe
from app.settings import DEMO, SHIPPED_RUN, Settings, checkpoint_option
from app.settings import SHIPPED as SHIPPED_IDS
from subllm.assets import ASSETS
from subllm.checkpoints.config import read_config
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.demo import SHIPPED
from tests.analysis.trace.test_trace import make_trace

TEXTS = {
    "plain": ("the cat sat on the mat and then the dog", False),
    "chat": ("why does the cat sit?", True),
    "quotes": ("-it's \"$HOME\" `ls` \\n {x!r} '''你好''' <b>\n\tmat", False),
    "long": ("the cat sat on the mat " * 30, False),
    "nul": ("the cat\0sat", False),
}


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint, "cpu", "float32")


@pytest.fixture
def recipe(tiny_checkpoint, tmp_path, monkeypatch):
    """A recipe of a text, whose code is run in an empty folder beside the checkpoint."""
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    return lambda text, chat=False: Recipe(text, chat, ModelSpec("tiny", tiny_checkpoint, "cpu", "float32"))


def executed(code):
    """What the command and the Python print, each run where the prompt's file is."""
    if code.prompt:
        with open(reproduce.PROMPT_FILE, "w", encoding="utf-8", newline="") as file:
            file.write(code.prompt)
    printed = []
    program, *arguments = shlex.split(code.command)
    assert program == "subllm"
    for run in (lambda: command.main(arguments), lambda: exec(code.python, {})):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert not run()
        printed.append(out.getvalue())
    return printed


def prompt_of(checkpoint, text, chat):
    return read_prompt(text, checkpoint.tokenizer, checkpoint.model.config.max_position_embeddings, chat=chat)


@pytest.mark.parametrize("checkpoint", SHIPPED_IDS)
def test_a_report_names_a_shipped_checkpoint_as_the_page_does(checkpoint):
    trace = make_trace()
    trace = replace(trace, provenance=replace(trace.provenance, checkpoint=checkpoint, edits=()))
    assert located(trace)
    assert commands(trace)[0].startswith(f"subllm trace{checkpoint_option(checkpoint)} --dtype")


@pytest.mark.parametrize("name", TEXTS)
def test_a_run_is_made_again(name, recipe, checkpoint, tmp_path):
    text, chat = TEXTS[name]
    trace = record_trace(checkpoint, prompt_of(checkpoint, text, chat), RunOptions(5, False), name="tiny")
    code = reproduce.traced(recipe(text, chat), trace)
    assert bool(code.prompt) == (name in ("long", "nul"))
    _, *arguments = shlex.split(code.command)
    for run in (lambda: command.main(arguments), lambda: exec(code.python, {})):
        if code.prompt:
            (tmp_path / reproduce.PROMPT_FILE).write_bytes(code.prompt.encode())
        with contextlib.redirect_stdout(io.StringIO()):
            assert not run()
        found = Trace.load(tmp_path / "trace.npz")
        (tmp_path / "trace.npz").unlink()
        assert found.digest == trace.digest


def test_a_run_is_compared_again_if_it_was(recipe, checkpoint, tmp_path):
    prompt = prompt_of(checkpoint, "the cat sat", False)
    trace = record_trace(checkpoint, prompt, RunOptions(0, True), dense=load_dense(checkpoint), name="tiny")
    executed(reproduce.traced(recipe("the cat sat"), trace))
    found = Trace.load(tmp_path / "trace.npz")
    assert found.costs is not None
    np.testing.assert_array_equal(found.agreement.divergence, trace.agreement.divergence)


@pytest.mark.parametrize("name", ["", "It's mine"])
def test_a_run_under_a_rule_is_made_again_with_all_that_was_measured(name, recipe, checkpoint, tmp_path):
    text = TEXTS["plain"][0]
    unnamed = [] if name else parse_edits("retention 0@2")  # which no rule has
    options = RunOptions(3, True, rule=Rule(name, "", tuple(parse_edits('drop 2-4@1; keep "dog"@*') + unnamed)))
    prompt = prompt_of(checkpoint, text, False)
    trace = record_trace(checkpoint, prompt, options, dense=load_dense(checkpoint), name="tiny")
    code = reproduce.traced(recipe(text), trace)
    _, *arguments = shlex.split(code.command)
    for run, named in ((lambda: command.main(arguments), ""), (lambda: exec(code.python, {}), name)):
        with contextlib.redirect_stdout(io.StringIO()):
            assert not run()
        found = Trace.load(tmp_path / "trace.npz")
        (tmp_path / "trace.npz").unlink()
        assert (found.provenance.rule, found.provenance.edits) == (named, trace.provenance.edits)
        np.testing.assert_array_equal(found.routing.kept, trace.routing.kept)
        np.testing.assert_array_equal(found.continuation.ids, trace.continuation.ids)
        assert found.costs is not None


def test_an_edited_run_is_made_again(recipe, checkpoint, tmp_path):
    text = TEXTS["plain"][0]
    edits = parse_edits('drop 2-4@1; threshold -0.5@2; keep "dog"@*; dense@2')
    trace = intervene(run_unedited(checkpoint, prompt_of(checkpoint, text, False)), edits).trace
    for answer in ("", " the mat"):
        for path in tmp_path.glob("*.npz"):
            path.unlink()
        code = reproduce.edited(recipe(text), edits, answer)
        said, _ = executed(code)
        assert ("answer" in said) == bool(answer)
        found = Trace.load(tmp_path / "edited.npz")
        assert found.run == trace.run
        np.testing.assert_array_equal(found.routing.kept, trace.routing.kept)
        np.testing.assert_allclose(found.routing.scores, trace.routing.scores, atol=1e-5)


@pytest.mark.parametrize("words", [True, False])
def test_an_attribution_is_made_again(words, recipe, checkpoint):
    options = {"method": "conductance", "held": "kept", "baseline": "zero", "steps": 8, "words": words}
    text = "the cat sat on themat and then thedog"
    prompt = prompt_of(checkpoint, text, False)
    features = 8 if words else len(prompt)
    assert len(prompt) > 8
    values = []
    for asked, texts, edits in (
        ((4, None), (" dog", " cat"), ()),
        ((4, None), (" dog", " cat"), parse_edits("keep 0-4@*; bypass 0.25@1")),
        ((4, 1), ("", "2"), ()),
    ):
        code = reproduce.explained(recipe(text), asked, texts, edits, **options)
        by_command, by_python = executed(code)
        values.append(float(by_python.split()[0]))
        assert float(re.search(r": (-?[\d.]+); with", by_command)[1]) == pytest.approx(values[-1], abs=1e-3)
        found = [float(each) for each in by_python.partition("[")[2].strip(" \n]").split()]
        assert len(found) == features
        strongest = re.search(r"^ +([+-][\d.]+)  '", by_command, re.MULTILINE)[1]
        assert float(strongest) == pytest.approx(max(found, key=abs), abs=1e-4)
    assert values[0] != values[1], "edits are in force"


def test_a_state_is_put_in_again(recipe):
    for other, answer in (("the dog sat on the mat", ""), ('-it\'s "$HOME"', " sat")):
        by_command, by_python = executed(reproduce.patched(recipe(TEXTS["plain"][0]), Place(1, other, 1), answer))
        levels = by_python.splitlines()
        assert by_command.count("before Level") == len(levels) >= 1
        assert [line.split()[-1] for line in levels] == [line.split()[-1] for line in by_command.splitlines()[1:]]


def test_a_continuation_is_made_again(recipe, checkpoint):
    text, sampling = TEXTS["plain"][0], Sampling(temperature=0.8, top_p=0.9, seed=7)
    edits = tuple(parse_edits("drop 2-4@1"))
    written = Generation(checkpoint.model, prompt_of(checkpoint, text, False), sampling, edits)
    while len(written.tokens) < 6 and not written.finished:
        written.step()
    said = checkpoint.tokenizer.decode([token.id for token in written.tokens])
    for printed in executed(reproduce.continued(recipe(text), sampling, edits, 6)):
        assert printed.rstrip("\n").endswith(said.rstrip("\n"))


def test_two_runs_are_compared_again(recipe, checkpoint, tmp_path):
    recipe("")
    for name, text in (("first", "the cat sat on the mat"), ("second", "the dog sat on the mat")):
        record_trace(checkpoint, text, RunOptions(0, False)).save(tmp_path / f"{name}.npz")
    by_command, by_python = executed(reproduce.compared())
    assert "Jaccard index" in by_command and "correlation" in by_python


def test_a_measurement_is_made_again(recipe, tmp_path):
    recipe("")
    code = reproduce.measured("tiny", "cpu", "float32", ([16], [1, 2], [0.0]), "routing off", 1)
    _, by_python = executed(code)
    assert by_python.count("Setting(") == 2 and list((tmp_path / "results").glob("*.parquet"))


@pytest.fixture
def hub(tiny_checkpoint, monkeypatch):
    """The name of a checkpoint on the hub, which tests do not reach."""
    monkeypatch.setenv("SUBLLM_HUB_MODELS", "someone/tiny")
    for place in ("subllm.checkpoints.load", "analysis.commands.arguments", "app.settings"):
        monkeypatch.setattr(f"{place}.fetch_checkpoint", {"someone/tiny": tiny_checkpoint}.__getitem__)
    return "someone/tiny"


def test_a_run_of_a_checkpoint_on_the_hub_is_made_again(hub, recipe, tiny_checkpoint, checkpoint, tmp_path):
    text = TEXTS["plain"][0]
    model = ModelSpec(hub, tiny_checkpoint, "cpu", "float32")
    code = reproduce.edited(replace(recipe(text), model=model), [], "")
    executed(code)
    found = Trace.load(tmp_path / "edited.npz")
    assert found.provenance.digest == checkpoint.digest
    (tmp_path / "someone").mkdir()
    with contextlib.redirect_stderr(io.StringIO()) as out:
        assert command.main(shlex.split(code.command)[1:]) == 1
    assert "no such folder" in out.getvalue(), "a folder is meant"


def test_a_chat_of_a_tokenizer_that_begins_texts_is_made_again_from_its_report(copied_checkpoint, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(copied_checkpoint)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = "<eos><|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.save_pretrained(copied_checkpoint)
    checkpoint = load_checkpoint(copied_checkpoint, "cpu", "float32")
    for chat in (True, False):
        text = "the cat" if chat else "<|im_start|>user\nthe cat<|im_end|>\n"  # which a person typed
        trace = record_trace(checkpoint, prompt_of(checkpoint, text, chat), RunOptions(0, False))
        _, *arguments = shlex.split(commands(trace)[0].replace(FOLDER, str(copied_checkpoint)))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(tmp_path):
            assert not command.main(arguments)
        found = Trace.load(tmp_path / "trace.npz")
        assert found.prompt.token_ids.tolist() == trace.prompt.token_ids.tolist()
        assert trace.prompt.token_ids.tolist().count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("checkpoint_id", ["tiny", "someone/tiny", *SHIPPED_IDS])
def test_a_prediction_is_made_again(checkpoint_id, recipe, hub, tiny_checkpoint, monkeypatch):
    recipe("")
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    config = Settings.read().configuration(checkpoint_id) or read_config(tiny_checkpoint)
    if checkpoint_id.startswith("shipped:"):
        monkeypatch.chdir(ASSETS.parent)
    hardware = load_hardware()[0]
    scenario = Scenario(hardware, 4096, 2, next(iter(hardware.operations)), graphs=True)
    structure = str(config.structure)
    code = reproduce.predicted(checkpoint_id, structure, 0.5, scenario, own_hardware=False)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code.python, {})
    expected = predict(changed(config, structure, 0.5), scenario)
    assert out.getvalue() == "".join(f"{line}\n" for line in expected)


@pytest.mark.parametrize("options", [Options(), Options(window=32, tokens=40, dense=True, attention=True, texts=False)])
def test_a_corpus_is_read_again(options, recipe, checkpoint, tmp_path):
    recipe("")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("the cat sat on the mat and then the dog sat on the mat " * 4)
    (tmp_path / FOLDER).symlink_to(tmp_path / "tiny")
    run = run_corpus([tmp_path / "texts"], tmp_path / "first", tmp_path / "tiny", options, workers=1)
    code = reproduce.counted(run)
    with contextlib.redirect_stdout(io.StringIO()):
        assert not command.main(shlex.split(code.command)[1:])
    assert CorpusRun.read(tmp_path / "result").options == run.options
    found = Summary.read(tmp_path / "result").measures
    shutil.rmtree(tmp_path / "result")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code.python, {})
    for again in (found, Summary.read(tmp_path / "result").measures):
        pd.testing.assert_frame_equal(again, Summary.read(tmp_path / "first").measures)


@pytest.mark.parametrize(
    "name, option, folder",
    [
        (DEMO, "", "build_demo(name='demo')"),
        ("demo-0123456789ab", "", "build_demo(name='demo')"),  # as `subllm corpus` calls it
        ("deep-0123456789ab", " --checkpoint deep", "build_demo(name='deep')"),
        ("shipped:small", " --checkpoint assets/small/final", "Path('assets/small/final')"),
        ("mine", " --checkpoint FOLDER", "Path('FOLDER')"),
    ],
)
def test_what_a_corpus_result_says_is_no_part_of_a_command(name, option, folder):
    written = CorpusRun.read(ASSETS / "corpus" / "demo")
    code = reproduce.counted(replace(written, checkpoint=name))
    assert code.command.startswith(f"subllm corpus{option} --text texts") and f"checkpoint = {folder}\n" in code.python
    hostile = replace(written, options=replace(written.options, dtype="float32; echo", rows=[1]))
    assert "--dtype 'float32; echo' " in reproduce.counted(hostile).command


def test_a_training_run_is_read_again(monkeypatch):
    monkeypatch.chdir(ASSETS.parent)
    code = reproduce.watched(SHIPPED_RUN, ASSETS / "small")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code.python, {})
    assert out.getvalue().strip()


def test_code_for_the_demo_builds_it_and_that_for_shipped_models_opens_them():
    model = ModelSpec(DEMO, SHIPPED, "cpu", "float32")
    code = reproduce.edited(Recipe("x", False, model), [], "")
    assert "load_checkpoint(build_demo(), 'cpu', 'float32')" in code.python and "--checkpoint" not in code.command
    small = reproduce.edited(Recipe("x", False, ModelSpec("shipped:small", SHIPPED, "cpu", "float32")), [], "")
    assert "load_checkpoint(Path('assets/small/final')" in small.python
