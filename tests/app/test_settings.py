"""What the operator allows is what a user can reach."""

import json
import os
import socket
from pathlib import Path

import pytest

import app.limits
import app.settings
from app.limits import PROFILES, VARIABLES, Feature
from app.settings import DEEP, DEMO, SHIPPED, SMALL, Settings, checkpoint_option
from subllm import CheckpointError, ConfigurationError
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.demo import home

_ODD = ["tiny\0", "x" * 5000, "\ud800", "evil\n2026-01-01 ERROR app: x/../tiny"]


def settings(root, **variables):
    return Settings.read({"SUBLLM_ROOTS": str(root), **variables})


def test_folders_below_the_roots_are_listed_and_located(tiny_checkpoint):
    root = tiny_checkpoint.parent
    allowed = settings(root, SUBLLM_HUB_MODELS="someone/model, other/model")
    assert allowed.choices() == [*SHIPPED, "tiny", "someone/model", "other/model"]
    assert allowed.locate("tiny", lambda share, text: None) == tiny_checkpoint.resolve()
    assert allowed.locate(str(tiny_checkpoint), lambda share, text: None) == tiny_checkpoint.resolve()


@pytest.mark.parametrize(
    "choice", ["../outside", "/etc", "link", "someone/unlisted", "tiny/../../outside", "", "\0", *_ODD]
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


def _checkpoint(folder, kind="subllm", weights="model.safetensors"):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / weights).write_text("")


def _folder(path):
    path.mkdir()


def _circle(path):
    path.symlink_to(path)


def _beyond(path):
    path.symlink_to("/dev/zero")


def _gone(path):
    path.symlink_to(path.with_name("gone"))


def _unreadable(path):
    path.write_text('{"model_type": "gpt2"}')
    path.chmod(0)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # an address has little room
        server.bind(path.name)
        os.chdir(here)


def _huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk, and would not fit into memory
        file.seek(1 << 30)
        file.write(b'"model_type": "subllm"')


def _deep(path):
    path.write_text("[" * 1_000_000)


@pytest.mark.parametrize("make", [_folder, os.mkfifo, _circle, _beyond, _gone, _unreadable, _socket, _huge, _deep])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_bad_folder_below_a_root_takes_no_other_away(tmp_path, name, make):
    for folder in ("bad", "good"):
        (tmp_path / folder).mkdir()
    make(tmp_path / "bad" / name)
    _checkpoint(tmp_path / "good")
    (tmp_path / "good" / "run.json").write_text("{}")
    allowed = settings(tmp_path)
    assert allowed.choices() == [*SHIPPED, "good"]
    assert allowed.llamas() == []
    assert {"good"} <= {*allowed.runs()}
    assert "bad" not in allowed.runs() or (name == "run.json" and make in (_unreadable, _huge, _deep))


def test_folders_that_cannot_be_shown_or_lead_out_or_in_a_circle_are_not_offered(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (b"root/\xff\xfe", b"root/two\nlines", b"root/good", b"outside"):
        path = os.fsencode(tmp_path) + b"/" + folder
        os.makedirs(path)
        for name in (b"/config.json", b"/run.json", b"/model.safetensors"):
            with open(path + name, "w") as file:
                file.write('{"model_type": "subllm"}')
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    (root / "up").symlink_to(root)
    allowed = settings(root)
    names = [name for name in allowed.choices() if not name.startswith("up/")]
    assert names == [*SHIPPED, "good"]
    assert not {"link", "circle", "two\nlines"} & {*allowed.runs()}
    for choice in allowed.choices()[len(SHIPPED) :]:
        assert allowed.locate(choice, lambda share, text: None) == root / "good"
    with pytest.raises(CheckpointError, match="neither a folder below"):
        allowed.locate("circle", lambda share, text: None)


@pytest.mark.parametrize("kind", ["subllm", "llama"])
def test_a_folder_is_offered_if_it_has_weights_of_its_own(tmp_path, kind):
    offered = ("model.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin", "best.pt")
    others = ("adapter_model.safetensors", "routing.safetensors", "optimizer.pt", "rng_state.pth", "rng_state_0.pth",
              "scheduler.pt", "scaler.pt", "training_args.bin", "trained.safetensors", "tokenizer.json")  # fmt: skip
    for name in (*offered, *others):
        (tmp_path / name).mkdir()
        _checkpoint(tmp_path / name, kind, name)
    allowed = settings(tmp_path)
    found = allowed.llamas() if kind == "llama" else allowed.choices()[len(SHIPPED) :]
    assert found == sorted(offered)


def test_the_roots_are_searched_once_for_many_pages_and_again_a_little_later(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(app.settings.time, "monotonic", lambda: now)
    looked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scan(path))
    for _ in range(20):
        assert settings(tmp_path).choices() == [*SHIPPED]
        assert settings(tmp_path).llamas() == []
        settings(tmp_path).runs()
    assert looked.count(tmp_path) == 1
    (tmp_path / "new").mkdir()
    os.utime(tmp_path, (0, 0))  # clocks of file systems are coarse
    _checkpoint(tmp_path / "new")
    assert settings(tmp_path).choices() == [*SHIPPED, "new"]
    (tmp_path / "new" / "deeper").mkdir()
    _checkpoint(tmp_path / "new" / "deeper", "llama")
    now += 5
    assert settings(tmp_path).llamas() == ["new/deeper"]


def test_a_later_search_opens_only_what_has_changed(tmp_path, monkeypatch, opened_files):
    now = 2000.0
    monkeypatch.setattr(app.settings.time, "monotonic", lambda: now)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _checkpoint(tmp_path / name)
        (tmp_path / name / "run.json").write_text("{}")
    assert settings(tmp_path).choices() == [*SHIPPED, "one", "two"]
    opened_files.clear()
    now += 60
    assert settings(tmp_path).choices() == [*SHIPPED, "one", "two"]
    assert not [path for path in opened_files if tmp_path in path.parents]
    (tmp_path / "two" / "config.json").write_text('{"model_type": "llama"}')
    opened_files.clear()
    now += 60
    assert settings(tmp_path).choices() == [*SHIPPED, "one"] and settings(tmp_path).llamas() == ["two"]
    assert [path for path in opened_files if tmp_path in path.parents] == [tmp_path / "two" / "config.json"]


def test_limits_are_read():
    limits = Settings.read({"SUBLLM_MAX_TOKENS": "100", "SUBLLM_MAX_SECONDS": "2.5"}).limits
    assert (limits.tokens, limits.seconds) == (100, 2.5)
    assert Settings.read({"SUBLLM_MAX_SECONDS": "inf"}).limits.seconds == float("inf")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_value_of_a_profile_can_be_overridden_and_the_others_stay(profile):
    assert Settings.read({"SUBLLM_PROFILE": profile}).limits == PROFILES[profile]
    for variable in VARIABLES[2:]:
        limits = Settings.read({"SUBLLM_PROFILE": profile, variable: "7"}).limits
        changed = [each for each in vars(limits) if getattr(limits, each) != getattr(PROFILES[profile], each)]
        assert [getattr(limits, each) for each in changed] == [7]
    for text, features in (("none", set()), ("all", {*Feature}), ("uploads, devices", {"uploads", "devices"})):
        assert Settings.read({"SUBLLM_PROFILE": profile, "SUBLLM_FEATURES": text}).limits.features == features


def test_the_tables_of_the_profiles_are_true():
    """In the module and in docs/hosting.md."""
    for text in (app.limits.__doc__, (Path(__file__).parents[2] / "docs" / "hosting.md").read_text()):
        for field, (variable, _, _) in app.limits._VARIABLES.items():
            (row,) = [line for line in text.splitlines() if line.startswith(f"| `{variable}`")]
            values = [cell.strip() for cell in row.split("|")[3:6]]
            assert [float(value) for value in values] == [getattr(each, field) for each in PROFILES.values()], variable
        (row,) = [line for line in text.splitlines() if line.startswith("| `SUBLLM_FEATURES`")]
        for name, cell in zip(PROFILES, row.split("|")[3:6], strict=True):
            read = Settings.read({"SUBLLM_FEATURES": cell.strip()}).limits.features
            assert read == PROFILES[name].features, name


def test_names_that_are_not_listed_are_refused_where_that_is_switched_off(tiny_checkpoint):
    root = tiny_checkpoint.parent
    allowed = settings(root, SUBLLM_PROFILE="public")
    assert allowed.locate("tiny", lambda share, text: None) == tiny_checkpoint.resolve()
    for typed in (str(tiny_checkpoint), "./tiny", "."):
        with pytest.raises(CheckpointError, match="neither a folder below") as refused:
            allowed.locate(typed, lambda share, text: None)
        assert str(root) not in str(refused.value) or typed == str(tiny_checkpoint)


@pytest.mark.parametrize(
    ("name", "texts", "allowed"),
    [
        (
            "SUBLLM_MAX_TOKENS",
            ["0", "-3", "many", "nan", "inf", "0.5", "1e400", "9" * 5000, ""],
            "whole number from 1 to 1,000,000,000",
        ),
        ("SUBLLM_MAX_SECONDS", ["0", "-1", "nan", "soon", "1e400", ""], "positive number"),
        (
            "SUBLLM_MAX_WAITING",
            ["0", "0.5", "nan", "9" * 50, "1e400"],
            "whole number from 1 to 1,000,000,000, or inf",
        ),
        ("SUBLLM_PROFILE", ["", "open"], "private, class or public"),
        ("SUBLLM_FEATURES", ["games", "uploads,games"], "ablation, calibration, devices"),
        ("SUBLLM_ROOTS", ["~nobody-of-that-name/models"], "no user of that name"),
        ("SUBLLM_LOG_LEVEL", ["LOUD"], "WARNING, INFO"),
        ("SUBLLM_FRAME_ORIGIN", ["*", "huggingface.co", "https://a.b/c", "https://a b"], "beginning of an address"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_is_allowed(name, texts, allowed):
    for text in texts:
        with pytest.raises(ConfigurationError, match=allowed) as refused:
            Settings.read({name: text})
        assert name in str(refused.value) and repr(text[-5:].rpartition(",")[2])[1:-1] in str(refused.value)
        assert len(str(refused.value)) < 300


def test_a_home_of_nobody_is_said(monkeypatch):
    monkeypatch.setenv("SUBLLM_HOME", "~nobody-of-that-name/models")
    with pytest.raises(ConfigurationError, match="SUBLLM_HOME is '~nobody-of-that-name/models'"):
        home()


@pytest.mark.parametrize("choice", [choice for choice in SHIPPED if choice not in (DEMO, DEEP)])
def test_the_shipped_checkpoints_come_with_the_repository_and_are_named_in_commands(tmp_path, choice):
    folder = settings(tmp_path).locate(choice, lambda share, text: None)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    assert checkpoint.model.config.num_hidden_layers == 12
    assert load_dense(checkpoint).is_twin == (choice == SMALL)
    option = checkpoint_option(choice).split()
    assert option[0] == "--checkpoint" and Path(option[1]).resolve() == folder.resolve()
    assert checkpoint_option(DEEP) == " --checkpoint deep"
    assert checkpoint_option(DEMO) == "" and checkpoint_option("a b") == " --checkpoint 'a b'"
