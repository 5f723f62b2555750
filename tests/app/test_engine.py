"""What outlives a rerun: models that nobody touches, one queue per device, and texts that sessions hold as recipes."""

import gc
import shutil
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.debug.edits import Edit
from analysis.debug.generation import Sampling
from analysis.guard import silent
from analysis.run import RunOptions
from analysis.trace.tokenize import read_prompt
from app import engine
from subllm.checkpoints.load import DENSE_TWIN, load_checkpoint


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    """Five copies of a checkpoint, which no test before has opened."""
    return [shutil.copytree(tiny_checkpoint, tmp_path / str(number)) for number in range(5)]


@pytest.mark.parametrize("device", engine.devices())
def test_a_model_in_use_stays_as_it_is_and_its_memory_is_free_when_its_last_user_lets_go(folders, device):
    checkpoint, dense = engine.load(folders[0], device, "float32")
    ids = torch.arange(1, 9, device=device)[None]
    before = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    logits = checkpoint.model(ids).logits
    for folder in folders[1:]:
        engine.load(folder, device, "float32")
    after = {name: (weight.device, weight.data_ptr()) for name, weight in checkpoint.model.named_parameters()}
    assert after == before
    assert torch.equal(checkpoint.model(ids).logits, logits)
    left = [weakref.ref(checkpoint.model), weakref.ref(dense.model)]
    del checkpoint, dense
    gc.collect()
    assert [each() for each in left] == [None, None]


def test_a_model_that_nobody_uses_is_gone_before_another_one_is_loaded(folders, monkeypatch):
    opened, alive = [], []

    def load(folder, device, dtype):
        alive.append(sum(each() is not None for each in opened))
        checkpoint = load_checkpoint(folder, device, dtype)
        opened.append(weakref.ref(checkpoint.model))
        return checkpoint

    monkeypatch.setattr(engine, "load_checkpoint", load)
    for folder in folders:
        engine.load(folder, "cpu", "float32")
    assert alive == [0, 1, 1, 1, 1]


def test_a_model_is_loaded_once_and_again_when_a_file_of_it_or_of_its_twin_is_another(folders):
    folder = folders[0]
    first = engine.load(folder, "cpu", "float32")
    (folder / "link.json").symlink_to(folder / "gone.json")
    assert engine.load(folder, "cpu", "float32") is first
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    second = engine.load(folder, "cpu", "float32")
    assert second is not first
    assert not second[1].is_twin
    second[1].model.save_pretrained(folder / DENSE_TWIN)
    third = engine.load(folder, "cpu", "float32")
    assert third is not second and third[1].is_twin
    assert engine.load(folder, "cpu", "float32") is third


def test_every_device_has_a_queue_of_its_own_and_serves_in_the_order_of_asking():
    served, holding, release = [], threading.Event(), threading.Event()

    def hold():
        with engine._engine().turn("cpu", silent):
            holding.set()
            release.wait(20)
            served.append("first")

    def ask(name, device):
        with engine._engine().turn(
            device, lambda share, stage, **values: waiting.append((name, stage, values["ahead"]))
        ):
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

    with engine._engine().turn("cpu", silent), pytest.raises(InterruptedError), engine._engine().turn("cpu", stop):
        pass
    with engine._engine().turn("cpu", stop):  # nobody is ahead
        pass


def source_of(folder):
    return engine.Source("the cat sat on the mat", False, "tiny", folder, "cpu", "float32")


def text_of(source, **fields):
    checkpoint, _ = source.load()
    return engine.Text(source, read_prompt(source.text, checkpoint.tokenizer, 512), Sampling(**fields), (), False)


def test_a_text_goes_on_from_its_recipe_whoever_wrote_it_before(folders):
    text = text_of(source_of(folders[0]))
    *_, (whole,) = engine.write([text], 8, silent)
    *_, (start,) = engine.write([text], 3, silent)
    other = engine.branch(start, 2, 7, silent)
    assert [token.id for token in other.tokens] == [*(token.id for token in start.tokens[:2]), 7]
    engine._engine().texts.keep(lambda _: False)  # what lay on the device is gone
    *_, (again,) = engine.write([start], 5, silent)
    assert [token.id for token in again.tokens] == [token.id for token in whole.tokens]
    assert again.tokens[:3] == start.tokens
    assert not engine.finished(again, silent)


def test_traces_are_known_by_everything_that_changes_them(folders):
    source = source_of(folders[0])

    def run(**changes):
        options = changes.pop("options", RunOptions(0, False))
        *_, (trace, _) = engine.run(replace(source, **changes), options, silent, truncate=False, limit=512)
        return trace

    first = run()
    assert run() is first
    for changes in (
        {"text": "the cat"},
        {"chat": True},
        {"choice": "other"},
        {"dtype": "bfloat16"},
        {"options": RunOptions(1, False)},
    ):
        assert run(**changes) is not first, changes


def test_what_an_engine_keeps_of_a_model_goes_with_the_model(folders):
    source = source_of(folders[0])
    *_, (trace, _) = engine.run(source, RunOptions(0, False), silent, truncate=False, limit=512)
    list(engine.edited(source, trace, "", [Edit("dense", 1)], silent, 512))
    engine.finished(text_of(source), silent)
    model = weakref.ref(source.load()[0].model)
    for folder in folders[1:]:
        engine.load(folder, "cpu", "float32")
    gc.collect()
    assert model() is None


def test_an_edited_run_in_depth_is_the_edited_run(folders):
    source = source_of(folders[0])
    *_, (trace, _) = engine.run(source, RunOptions(0, False), silent, truncate=False, limit=512)
    dropped = int((~trace.routing.kept[0]).nonzero()[0][0])
    *_, outcome = engine.edited(source, trace, "", [Edit("keep", 1, str(dropped))], silent, 512)
    found, _ = engine.follow(source, outcome.trace, dropped, silent)
    assert found.processed.tolist() == outcome.trace.routing.processed[:, dropped].tolist()
    added = outcome.trace.routing.contribution_norm[0, dropped]
    assert (found.contributions[0] ** 2).sum() ** 0.5 == pytest.approx(added, rel=1e-3)
    confident = engine.read_off_all(source, outcome.trace, 60, silent).blocks.confidence
    assert (~np.isnan(confident)).tolist() == outcome.trace.routing.processed.tolist()
    attended = engine.attention(source, outcome.trace, dropped, silent)
    assert (~np.isnan(attended[:, 0]).all(1)).tolist() == outcome.trace.routing.processed[:, dropped].tolist()
