"""What outlives a rerun: models that nobody touches, one queue per device, and texts that sessions hold as recipes."""

import gc
import shutil
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import AnalysisError
from analysis.debug.edits import Edit
from analysis.debug.generation import Sampling
from analysis.guard import silent
from analysis.run import RunOptions
from analysis.trace.tokenize import read_prompt
from app import engine
from app.engine import models, texts
from app.engine.queue import turn
from subllm.checkpoints.files import DENSE_TWIN
from subllm.checkpoints.load import load_checkpoint
from subllm.errors import DeviceFullError


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    """Five copies of a checkpoint, which no test before has opened."""
    return [shutil.copytree(tiny_checkpoint, tmp_path / str(number)) for number in range(5)]


def spec_of(folder, device="cpu"):
    return engine.ModelSpec("tiny", folder, device, "float32")


def load(folder, device="cpu"):
    return spec_of(folder, device).load()


@pytest.mark.parametrize("device", engine.devices())
def test_a_model_in_use_stays_as_it_is_and_its_memory_is_free_when_its_last_user_lets_go(folders, device):
    checkpoint, dense = load(folders[0], device)
    ids = torch.arange(1, 9, device=device)[None]
    before = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    logits = checkpoint.model(ids).logits
    for folder in folders[1:]:
        load(folder, device)
    after = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    assert after == before
    assert torch.equal(checkpoint.model(ids).logits, logits)
    left = [weakref.ref(checkpoint.model), weakref.ref(dense.model)]
    del checkpoint, dense
    gc.collect()
    assert [each() for each in left] == [None, None]


def test_a_model_that_nobody_uses_is_gone_before_another_one_is_loaded(folders, monkeypatch):
    opened, alive = [], []

    def load_another(folder, device, dtype):
        alive.append(sum(each() is not None for each in opened))
        checkpoint = load_checkpoint(folder, device, dtype)
        opened.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(models, "load_checkpoint", load_another)
    for folder in folders:
        load(folder)
    assert alive == [0, 1, 1, 1, 1]


def test_a_device_that_is_full_of_idle_models_is_emptied_and_asked_once_more(folders, monkeypatch):
    """The card may hold two models, but not those two that are kept and the next one."""
    opened, tries = [], []

    def load_another(folder, device, dtype):
        tries.append(sum(each() is not None for each in opened))
        if tries[-1] > 1 or folder == folders[4]:
            raise DeviceFullError("full")
        checkpoint = load_checkpoint(folder, device, dtype)
        opened.append(weakref.ref(checkpoint.model))
        return checkpoint

    store = models._Models()
    store._models = models.LastUsed(3)
    monkeypatch.setattr(models, "_models", lambda: store)
    monkeypatch.setattr(models, "load_checkpoint", load_another)
    for folder in folders[:3]:
        load(folder)
    assert tries == [0, 1, 2, 0], "two fit; for the third one they are dropped"
    with pytest.raises(DeviceFullError):
        load(folders[4])
    assert tries[4:] == [1, 0], "one more try and no other: now the device is empty"


def test_a_model_is_loaded_once_and_again_when_a_file_of_it_or_of_its_twin_is_another(folders):
    folder = folders[0]
    first = load(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    second = load(folder)
    assert second is not first
    assert not second[1].is_twin
    second[1].model.save_pretrained(folder / DENSE_TWIN)
    third = load(folder)
    assert third is not second and third[1].is_twin
    assert load(folder) is third


def test_every_device_has_a_queue_of_its_own_and_serves_in_the_order_of_asking():
    served, holding, release = [], threading.Event(), threading.Event()

    def hold():
        with turn("cpu", silent):
            holding.set()
            release.wait(20)
            served.append("first")

    def ask(name, device):
        with turn(device, lambda share, stage, **values: waiting.append((name, stage, values["ahead"]))):
            served.append(name)

    waiting = []
    first = threading.Thread(target=hold)
    first.start()
    assert holding.wait(20)
    others = []
    for number, name in enumerate(("second", "third"), start=1):
        others.append(threading.Thread(target=ask, args=(name, "cpu")))
        others[-1].start()
        while (name, "waiting", number) not in waiting:  # it stands in the queue
            assert others[-1].is_alive()
    ask("elsewhere", "meta")  # a run on another device waits for nobody
    assert served == ["elsewhere"]
    release.set()
    for thread in (first, *others):
        thread.join(20)
    assert served == ["elsewhere", "first", "second", "third"]


def test_a_run_that_is_stopped_while_it_waits_leaves_the_queue():
    def stop(share, stage, **values):
        raise InterruptedError

    with turn("cpu", silent), pytest.raises(InterruptedError), turn("cpu", stop):
        pass
    with turn("cpu", stop):  # nobody is ahead
        pass


def test_a_model_is_loaded_in_the_turn_of_its_device(folders):
    """Whoever loads takes a device's memory, as a run does: it stands in the same queue."""
    seen, holding, release = [], threading.Event(), threading.Event()

    def hold():
        with turn("cpu", silent):
            holding.set()
            release.wait(20)

    def look(share, stage, **values):
        seen.append(stage)
        if stage == "waiting":
            release.set()

    first = threading.Thread(target=hold)
    first.start()
    assert holding.wait(20)
    spec_of(folders[0]).load(look)
    first.join(20)
    assert seen[0] == "waiting" and seen[-1] == "loading"
    with turn("cpu", silent):
        spec_of(folders[0]).load(lambda *_, **__: pytest.fail("a model that is known needs no turn"))


def recipe_of(folder):
    return engine.Recipe("the cat sat on the mat", False, spec_of(folder))


def text_of(recipe, **fields):
    checkpoint, _ = recipe.model.load()
    prompt = read_prompt(recipe.text, checkpoint.tokenizer, 512)
    return engine.Text(recipe.model, prompt, Sampling(**fields), (), False)


def test_a_text_goes_on_from_its_recipe_whoever_wrote_it_before(folders):
    text = text_of(recipe_of(folders[0]))
    *_, (whole,) = engine.write([text], 8, silent)
    *_, (start,) = engine.write([text], 3, silent)
    other = engine.branch(start, 2, 7, silent)
    assert [token.id for token in other.tokens] == [*(token.id for token in start.tokens[:2]), 7]
    texts._live().values.keep(lambda _: False)  # what lay on the device is gone
    *_, (again,) = engine.write([start], 5, silent)
    assert [token.id for token in again.tokens] == [token.id for token in whole.tokens]
    assert again.tokens[:3] == start.tokens
    assert not engine.finished(again, silent)


def test_a_cut_prompt_has_a_recipe_of_its_own_unless_its_template_was_cut(folders):
    recipe = recipe_of(folders[0])
    checkpoint, _ = recipe.model.load()
    for asked, most, expected in (
        (recipe, 512, recipe),
        (recipe, 9, replace(recipe, text=recipe.text[:9])),
        (replace(recipe, chat=True), 9, replace(recipe, chat=True, again=False)),
    ):
        prompt = read_prompt(asked.text, checkpoint.tokenizer, most, chat=asked.chat, truncate=True)
        found = engine.recipe_of_cut(asked, prompt, silent)
        assert found == replace(expected, text=expected.text if asked.chat else prompt.text)
        if found.again:
            read = read_prompt(found.text, checkpoint.tokenizer, 512, chat=found.chat)
            assert read.token_ids.tolist() == prompt.token_ids.tolist()


def test_prompt_and_answer_have_the_limit_of_every_prompt(folders):
    recipe = recipe_of(folders[0])
    *_, (trace, _) = engine.run(recipe, RunOptions(0, False), silent, truncate=False, limit=512)
    *_, (text,) = engine.write([text_of(recipe)], 3, silent)
    answer, whole = [token.id for token in text.tokens], len(trace.prompt) + 3
    found, _ = engine.run_with_answer(recipe, trace, trace.prompt, answer, [], silent, limit=whole)
    assert len(found.prompt) == whole
    with pytest.raises(AnalysisError, match=f"have {whole} tokens together; at most {whole - 1} fit"):
        engine.run_with_answer(recipe, trace, trace.prompt, answer, [], silent, limit=whole - 1)


def test_traces_are_known_by_everything_that_changes_them(folders):
    recipe = recipe_of(folders[0])

    def run(**changes):
        options = changes.pop("options", RunOptions(0, False))
        of_model = {name: changes.pop(name) for name in ("checkpoint", "dtype") if name in changes}
        other = replace(recipe, model=replace(recipe.model, **of_model), **changes)
        *_, (trace, _) = engine.run(other, options, silent, truncate=False, limit=512)
        return trace

    first = run()
    assert run() is first
    for changes in (
        {"text": "the cat"},
        {"chat": True},
        {"checkpoint": "other"},
        {"dtype": "bfloat16"},
        {"options": RunOptions(1, False)},
    ):
        assert run(**changes) is not first, changes


def test_a_run_that_was_not_wholly_compared_is_made_again_for_whoever_has_more_time(folders, monkeypatch):
    recipe, options = recipe_of(folders[0]), RunOptions(0, True)

    def run():
        *_, (trace, _) = engine.run(recipe, options, silent, truncate=False, limit=512)
        return trace

    left = iter([9.0, 9.0, 9.0, 0.0])  # enough for the measurement of time, and for nothing after it
    with monkeypatch.context() as patched:
        patched.setattr("analysis.run.seconds_left", lambda progress: next(left))
        hurried = run()
    assert hurried.costs is not None and hurried.agreement is None
    whole = run()
    assert whole.agreement is not None and run() is whole


def test_an_edited_run_and_a_patched_one_know_where_the_answer_begins(folders):
    recipe = recipe_of(folders[0])
    *_, (trace, _) = engine.run(recipe, RunOptions(3, False), silent, truncate=False, limit=512)
    ids = trace.continuation.ids.tolist()
    answered, again = engine.run_with_answer(recipe, trace, trace.prompt, ids, (), silent, limit=512)
    first = answered.provenance.answer_from
    assert first == trace.num_tokens
    *_, edited = engine.edited(recipe.model, answered, "", [Edit("dense", 1)], silent, 512)
    _, (patched, *_) = engine.patched(again, answered, engine.Place(0, "the dog", 0), "", silent, 512)
    assert edited.trace.provenance.answer_from == patched.trace.provenance.answer_from == first
    alone = replace(answered, provenance=replace(answered.provenance, answer_from=0))
    *_, edited = engine.edited(recipe.model, alone, "", [Edit("dense", 1)], silent, 512)
    assert edited.trace.provenance.answer_from == 0, "the same text, all of which a person wrote"


def test_what_an_engine_keeps_of_a_model_goes_with_the_model(folders):
    recipe = recipe_of(folders[0])
    *_, (trace, _) = engine.run(recipe, RunOptions(0, False), silent, truncate=False, limit=512)
    list(engine.edited(recipe.model, trace, "", [Edit("dense", 1)], silent, 512))
    engine.finished(text_of(recipe), silent)
    model = weakref.ref(recipe.model.load()[0].model)
    for folder in folders[1:]:
        load(folder)
    gc.collect()
    assert model() is None


def test_an_edited_run_in_depth_is_the_edited_run(folders):
    recipe = recipe_of(folders[0])
    *_, (trace, _) = engine.run(recipe, RunOptions(0, False), silent, truncate=False, limit=512)
    dropped = int((~trace.routing.kept[0]).nonzero()[0][0])
    *_, outcome = engine.edited(recipe.model, trace, "", [Edit("keep", 1, str(dropped))], silent, 512)
    found, _ = engine.follow(recipe.model, outcome.trace, dropped, silent)
    assert found.processed.tolist() == outcome.trace.routing.processed[:, dropped].tolist()
    added = outcome.trace.routing.contribution_norm[0, dropped]
    assert (found.contributions[0] ** 2).sum() ** 0.5 == pytest.approx(added, rel=1e-3)
    confident = engine.read_off_all(recipe.model, outcome.trace, silent).blocks.confidence
    assert (~np.isnan(confident)).tolist() == outcome.trace.routing.processed.tolist()
    attended = engine.attention(recipe.model, outcome.trace, dropped, silent)
    assert (~np.isnan(attended[:, 0]).all(1)).tolist() == outcome.trace.routing.processed[:, dropped].tolist()
