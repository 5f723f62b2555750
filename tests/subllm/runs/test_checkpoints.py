"""A damaged checkpoint is noticed before it is used, and the one before is used; so are a damaged log and run.json."""

import json
import shutil

import pytest
import torch

from subllm import TrainingError
from subllm.checkpoints.load import load_checkpoint
from subllm.runs.checkpoints import MANIFEST, damage, last_checkpoint, last_whole
from subllm.train.config import TrainConfig
from subllm.train.loop import train
from tests.subllm.convert.conftest import convert, tiny_llama  # noqa: F401 - a fixture
from tests.subllm.runs.jobs import MODEL, SMALL, losses

FILES = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin",
    "config.json",
)  # fmt: skip
OF_CONVERSIONS = (
    "trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json",
    "adapter_config.json", "adapter_model.safetensors", "routing.safetensors",
)  # fmt: skip
DAMAGES = ("missing", "empty", "cut", "zeroed", "cut by a byte", "another bit")
READABLE = ("cut by a byte", "another bit")  # damages that may leave a file that can be read


def spoil(path, kind):
    """Damage a file."""
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(
            {
                "empty": b"", "cut": content[:middle], "zeroed": bytes(len(content)), "cut by a byte": content[:-1],
                "another bit": flipped,
            }[kind]
        )  # fmt: skip


def equal_to(finished, out):
    """Whether a run ended as the one that nothing disturbed."""
    assert losses(out) == pytest.approx(losses(finished), abs=1e-6)
    whole, other = (load_checkpoint(folder / "final", "cpu", "float32").model for folder in (finished, out))
    for (name, one), two in zip(whole.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damage_to_any_file_of_the_last_checkpoint_leads_to_the_one_before(copied, name, kind):
    spoil(copied / "checkpoint-8" / name, kind)
    last, damaged = last_whole(copied)
    if name == MANIFEST and kind in ("missing", *READABLE):
        assert last is not None  # earlier versions wrote none; its last byte is a line break, and some bits are spaces
        return
    assert last.name == "checkpoint-6"
    ((checkpoint, wrong),) = damaged.items()
    assert checkpoint.name == "checkpoint-8" and (name in wrong or name == MANIFEST), wrong


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind not in READABLE])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_without_a_manifest_is_checked_by_presence_and_readability(copied, name, kind):
    for checkpoint in copied.glob("checkpoint-*"):
        (checkpoint / MANIFEST).unlink()
    assert last_checkpoint(copied).name == "checkpoint-8"
    spoil(copied / "checkpoint-8" / name, kind)
    last, damaged = last_whole(copied)
    assert last.name == "checkpoint-6" and all(name in wrong for wrong in damaged.values()), damaged


@pytest.mark.parametrize(
    ("name", "kind"),
    [("optimizer.pt", "missing"), ("scheduler.pt", "missing"), ("model.safetensors", "cut"),
     ("trainer_state.json", "empty"), ("rng_state.pth", "zeroed")],
)  # fmt: skip
def test_a_run_goes_on_from_the_checkpoint_before_and_says_why(copied, data, finished, capsys, name, kind):
    shutil.rmtree(copied / "final")
    spoil(copied / "checkpoint-8" / name, kind)
    train(TrainConfig.of(SMALL), data, copied)
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1 and f"checkpoint-8 is damaged: {name}" in said[0]
    assert said[0].endswith("Going on from checkpoint-6, the last one that is whole.")
    equal_to(finished, copied)
    assert all(damage(checkpoint) is None for checkpoint in copied.glob("checkpoint-*"))


@pytest.mark.soak
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_run_with_any_damage_ends_as_if_there_had_been_none(copied, data, finished, name, kind, sealed):
    if not sealed:
        (copied / "checkpoint-8" / MANIFEST).unlink()
        if kind in READABLE:
            pytest.skip("without a manifest only what cannot be read is noticed")
    shutil.rmtree(copied / "final")
    spoil(copied / "checkpoint-8" / name, kind)
    train(TrainConfig.of(SMALL), data, copied)
    equal_to(finished, copied)


def test_a_run_without_a_whole_checkpoint_stops_and_states_the_choice(copied, data):
    for checkpoint in copied.glob("checkpoint-*"):
        spoil(checkpoint / "optimizer.pt", "empty")
    with pytest.raises(TrainingError, match=r"No checkpoint .* is whole \(checkpoint-8 .*optimizer.pt has 0 bytes.*; "):
        train(TrainConfig.of(SMALL), data, copied)
    for checkpoint in copied.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    train(TrainConfig.of(SMALL), data, copied)  # as the message says: with the first step again
    assert sorted(losses(copied)) == list(range(1, 9))


@pytest.mark.parametrize("kind", [*(kind for kind in DAMAGES if kind != "another bit"), "text", "null", "nested"])
def test_a_damaged_log_is_mended_from_the_checkpoint_and_said(copied, data, finished, capsys, kind):
    log = copied / "log.jsonl"
    extra = {"text": '{"step": 2, "loss": "low"}', "null": '{"step": null}', "nested": "[" * 100_000}
    before = log.read_text().splitlines()
    if kind in extra:
        log.write_text("\n".join([*before[:3], extra[kind], *before[4:]]) + "\n")
    else:
        spoil(log, kind)
    kept = {line for line in log.read_text().splitlines() if line in before} if log.exists() else set()
    train(TrainConfig.of(SMALL), data, copied)
    assert losses(copied) == pytest.approx(losses(finished), abs=1e-6)
    after = log.read_text().splitlines()
    assert len(after) == len(before) and kept <= {*after} | {before[-1]}, "what could be read is kept"
    said = [line for line in capsys.readouterr().err.splitlines() if "log.jsonl" in line]
    assert len(said) == 1 and "put back from the checkpoint of step 8" in said[0]
    assert (" damaged, the first is line 4 (" in said[0]) == (kind in extra), said


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "zeroed", "list", "nested"])
def test_a_damaged_run_file_is_made_again_of_the_checkpoint_and_another_run_still_refused(copied, data, capsys, kind):
    path, content = copied / "run.json", {"list": "[]", "nested": "[" * 100_000}
    expected = json.loads(path.read_text())
    for attempt in (1, 2):
        if kind in content:
            path.write_text(content[kind])
        else:
            spoil(path, kind)
        if attempt == 1:
            with pytest.raises(TrainingError, match=r"holds another run \(it differs in model\)"):
                train(TrainConfig.of(SMALL | {"model": MODEL | {"structure": "T(TTT)T"}}), data, copied)
            path.write_text(json.dumps(expected))
    train(TrainConfig.of(SMALL), data, copied)
    assert json.loads(path.read_text()) == expected
    assert "run.json is " in capsys.readouterr().err


def test_a_damaged_run_file_that_no_checkpoint_knows_is_refused_with_the_choice(copied, data):
    for checkpoint in copied.glob("checkpoint-*"):
        (checkpoint / MANIFEST).unlink()
    (copied / "run.json").write_text("")
    with pytest.raises(TrainingError, match=r"run.json is damaged.*Remove the file to go on"):
        train(TrainConfig.of(SMALL), data, copied)
    (copied / "run.json").unlink()
    train(TrainConfig.of(SMALL), data, copied)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_checkpoint_of_a_conversion_leads_to_the_one_before(tiny_llama, sealed):  # noqa: F811
    arguments = [
        "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl",
        "--length", 24, "--held-out-blocks", 2, "--precision", "float32", "--start-retention", 0.64,
    ]  # fmt: skip
    out = tiny_llama / "out"
    for steps in (2, 4):  # a checkpoint at the end of each
        assert convert(*arguments, "--out", out, "--steps", steps).returncode == 0
    run = out / "training"
    for checkpoint in run.glob("checkpoint-*"):
        assert damage(checkpoint) is None
        if not sealed:
            (checkpoint / MANIFEST).unlink()
    tried = 0
    for name in OF_CONVERSIONS:
        for kind in DAMAGES:
            if not sealed and kind in READABLE:
                continue
            path = run / "checkpoint-4" / name
            content = path.read_bytes()
            spoil(path, kind)
            last, damaged = last_whole(run)
            assert last.name == "checkpoint-2" and all(name in wrong for wrong in damaged.values()), (name, kind)
            path.write_bytes(content)
            tried += 1
    assert tried == (54 if sealed else 36)
    spoil(run / "checkpoint-4" / "trained.safetensors", "cut")
    done = convert(*arguments, "--out", out, "--steps", 4)
    assert done.returncode == 0 and "Going on from checkpoint-2" in done.stderr, done.stderr
    assert damage(run / "checkpoint-4") is None
