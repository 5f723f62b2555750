"""What the operator allows is what a user can reach."""

from pathlib import Path

import pytest

from app.settings import DEMO, SMALL, Settings, checkpoint_option
from subllm import CheckpointError, ConfigurationError
from subllm.checkpoints import load_checkpoint, load_dense


_ODD = ["tiny\0", "x" * 5000, "\ud800", "evil\n2026-01-01 ERROR app: x/../tiny"]


def settings(root, **variables):
    return Settings.read({"SUBLLM_ROOTS": str(root), **variables})


def test_folders_below_the_roots_are_listed_and_located(tiny_checkpoint):
    root = tiny_checkpoint.parent
    allowed = settings(root, SUBLLM_HUB_MODELS="someone/model, other/model")
    assert allowed.choices() == [DEMO, SMALL, "tiny", "someone/model", "other/model"]
    assert allowed.locate("tiny", lambda share, text: None) == tiny_checkpoint.resolve()
    assert allowed.locate(str(tiny_checkpoint), lambda share, text: None) == tiny_checkpoint.resolve()


@pytest.mark.parametrize(
    "choice", ["../outside", "/etc", "link", "someone/unlisted", "tiny/../../outside", "", "\0"] + _ODD
)
def test_nothing_outside_of_the_roots_can_be_reached(tmp_path, choice):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "tiny").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(CheckpointError, match="neither a folder below") as refused:
        settings(root).locate(choice, lambda share, text: None)
    said = str(refused.value)
    assert said.isprintable() and len(said) < 600


def test_limits_are_read_and_checked():
    allowed = Settings.read({"SUBLLM_MAX_TOKENS": "100", "SUBLLM_MAX_SECONDS": "2.5"})
    assert (allowed.max_tokens, allowed.max_seconds) == (100, 2.5)
    for bad in ("0", "-3", "many", "nan"):
        with pytest.raises(ConfigurationError, match=f"SUBLLM_MAX_TOKENS is '{bad}'"):
            Settings.read({"SUBLLM_MAX_TOKENS": bad})


def test_the_shipped_checkpoints_come_with_the_repository_and_are_named_in_commands(tmp_path):
    folder = settings(tmp_path).locate(SMALL, lambda share, text: None)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    assert checkpoint.model.config.num_hidden_layers == 12
    assert load_dense(checkpoint).is_twin
    option = checkpoint_option(SMALL).split()
    assert option[0] == "--checkpoint" and Path(option[1]).resolve() == folder.resolve()
    assert checkpoint_option(DEMO) == "" and checkpoint_option("a b") == " --checkpoint 'a b'"
