"""The command `subllm report`: one file, or a folder with an index that any server can give out."""

import re
from html import unescape
from urllib.parse import unquote

import pytest

from analysis import Trace
from analysis.corpus.aggregate import aggregate
from app.command import main
from tests.analysis.corpus.simulated import simulate
from tests.analysis.trace.test_trace import make_trace


@pytest.fixture
def files(tmp_path):
    found = []
    for seed, name in enumerate(("a & <b>", "故事", "code")):
        found.append(tmp_path / f"{name}.npz")
        make_trace(tokens=6, seed=seed).save(found[-1])
    return found


def test_a_folder_of_reports_has_an_index_whose_links_lead_somewhere(files, tmp_path, capsys):
    out = tmp_path / "site"
    pair = f"{files[0]}+{files[2]}"
    assert main(["report", *map(str, files), pair, "--out", str(out), "--language", "zh", "--note", "<i>"]) == 0
    assert capsys.readouterr().out == f"{out / 'index.html'}\n"
    names = {"a & <b>.html", "故事.html", "code.html", "a & <b>+code.html", "index.html"}
    assert {path.name for path in out.iterdir()} == names | {file.name for file in files}
    index = (out / "index.html").read_text(encoding="utf-8")
    linked = {unquote(unescape(each)) for each in re.findall(r'href="([^"]+)"', index)}
    assert linked == {path.name for path in out.iterdir()} - {"index.html"}
    assert "&lt;i&gt;" in index and "<i>" not in index and '<html lang="zh">' in index
    for file in files:
        assert Trace.load(out / file.name).digest == Trace.load(file).digest
    assert main(["report", str(files[1]), "--out", str(out)]) == 0, "the site is written again"
    assert (out / "code.html").is_file(), "what is there stays"


def test_one_file_shows_one_run_or_several_side_by_side(files, tmp_path):
    out = tmp_path / "one.html"
    assert main(["report", str(files[0]), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").count('class="data"') == 1
    assert main(["report", f"{files[0]}+{files[1]}", "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").count('class="data"') == 2


def test_a_corpus_result_or_two_are_one_file(files, tmp_path, capsys):
    folders = [tmp_path / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        simulate(folder, 6, 40, seed=seed)
        aggregate(folder)
    out, pair = tmp_path / "corpus.html", f"{folders[0]}+{folders[1]}"
    for text, headings in ((str(folders[0]), {"one"}), (pair, {"one", "other"})):
        assert main(["report", text, "--out", str(out)]) == 0
        found = out.read_text(encoding="utf-8")
        assert {name for name in ("one", "other") if f"<h2>{name}</h2>" in found} == headings
    for wrong in ([pair, str(files[0])], [f"{pair}+{folders[0]}"]):
        assert main(["report", *wrong, "--out", str(out)]) == 1
        assert "write DIR or DIR+DIR" in capsys.readouterr().err
    assert main(["report", pair, "--out", str(tmp_path / "site")]) == 1


def test_mistakes_are_said_and_leave_nothing_behind(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", *map(str, files[:2]), "--out", str(out.with_suffix(".html"))]) == 1
    assert "name a folder, or join the files by +" in capsys.readouterr().err
    assert main(["report", str(files[0]), str(files[0]), "--out", str(out)]) == 1
    assert "rename one of them" in capsys.readouterr().err
    index = tmp_path / "index.npz"
    make_trace().save(index)
    assert main(["report", str(index), "--out", str(out)]) == 1
    assert "'index.html'" in capsys.readouterr().err
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no")
    assert main(["report", str(bad), "--out", str(out)]) == 1
    assert "bad.npz" in capsys.readouterr().err
    assert not out.exists() and not out.with_suffix(".html").exists()
