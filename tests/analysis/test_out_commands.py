"""`--out`: what cannot be written is said before a model is loaded, or anything read."""

from pathlib import Path

import pytest

from app.command import main

ABSENT = ["--checkpoint", "absent", "--prompt", "x", "--out"]
FILES = {
    "trace": ["trace", *ABSENT],
    "edit": ["edit", *ABSENT],
    "patch": ["patch", "--other", "y", "--token", "0", "--level", "1", *ABSENT],
    "rivals": ["rivals", *ABSENT],
    "evaluate": ["evaluate", "--checkpoint", "absent", "--needles", "9", "--out"],
    "the card": ["evaluate", "--checkpoint", "absent", "--needles", "9", "--card"],
    "report": ["report", "absent.npz", "--out"],
    "answers": ["answers", "absent.csv", "--out"],
}
FOLDERS = {
    "efficiency": ["efficiency", "--checkpoint", "absent", "--out"],
    "tradeoff": ["tradeoff", "--checkpoint", "absent", "--name", "a", "--data", "absent", "--out"],
    "routers": ["routers", "--runs", "absent", "--out"],
    "training-step": ["training-step", "--config", "absent.json", "--out"],
    "report": ["report", "absent.npz", "--out"],
}


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.html").mkdir()
    for out, said in (("nowhere/a.html", "its folder does not exist"), ("there.html", "it is a folder")):
        assert main([*FILES[command], out]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {out} cannot be written: {said}")


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    for out in ("taken", "taken/below/it"):
        assert main([*FOLDERS[command], out]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {out} cannot be a folder: {tmp_path / 'taken'} is a file.")

    assert main([*FOLDERS[command], "some/new"]) == 1, "such a folder may be new; what it reads is absent"
    assert "cannot be a folder" not in capsys.readouterr().err
    assert not Path("some").exists()
