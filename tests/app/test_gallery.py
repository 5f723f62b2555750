"""The gallery: a page for every kind of run, and folders of Hugging Face Spaces that hold it, or the app."""

import pytest

from analysis import Trace
from analysis.guard import silent
from app import gallery
from app.settings import SMALL, Settings
from app.space import main
from subllm.checkpoints.load import load_checkpoint
from tests.browser.server import ROOT
from tests.conftest import run_command


@pytest.fixture(scope="module")
def small():
    """The small model in the demo's place, with a chat template, which it has none of."""
    checkpoint = load_checkpoint(Settings.read({}).locate(SMALL, silent), "cpu", "float32")
    checkpoint.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return checkpoint


def test_the_gallery_has_a_run_of_every_kind(small):
    pages = gallery.record(small, {"small-subllm": small, "small-mixture-of-depths": small})
    assert [*pages] == ["story", "needle", "chat", "code", "chinese", "story-edited", "two-routers"]
    assert all(isinstance(trace, Trace) for traces in pages.values() for trace in traces.values())
    (edited,), (story,) = pages["story-edited"].values(), pages["story"].values()
    assert edited.provenance.edits and not story.provenance.edits
    assert edited.routing.kept[0][:10].all() and edited.prompt.text == story.prompt.text
    assert len(pages["two-routers"]) == 2


def header(folder):
    return (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]


def test_a_static_space_is_the_site_with_a_header(tmp_path):
    site, out = tmp_path / "site", tmp_path / "space"
    site.mkdir()
    (site / "index.html").write_text("<!doctype html>")
    said = run_command(main, "static", "--site", site, "--out", out, "--title", 'A "quoted": title')
    assert said.returncode == 0 and f"hf upload OWNER/NAME {out} . --repo-type space" in said.stdout
    assert "sdk: static\n" in header(out) and 'title: "A \\"quoted\\": title"\n' in header(out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "index.html"]


def test_a_docker_space_has_what_its_steps_copy_and_starts_the_app_for_a_frame(tmp_path):
    out = tmp_path / "space"
    assert run_command(main, "docker", "--out", out).returncode == 0
    assert "sdk: docker\napp_port: 8501\n" in header(out)
    ours, theirs = ((folder / "Dockerfile").read_text().splitlines() for folder in (ROOT, out))
    assert theirs[: len(ours) - 1] == ours[:-1]
    assert "ENV SUBLLM_FRAME_ORIGIN=https://huggingface.co" in theirs
    assert theirs[-1].endswith('"app/main.py", "--server.enableXsrfProtection", "false"]')
    assert "enableXsrfProtection = true" in (out / ".streamlit" / "config.toml").read_text()
    copied = [source for line in theirs if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert all((out / source).exists() for source in copied) and not [*out.rglob("__pycache__")]


@pytest.mark.parametrize("kind", ["docker", "static"])
def test_a_folder_with_something_in_it_is_left_alone(tmp_path, kind):
    (tmp_path / "index.html").write_text("mine")
    extra = ["--site", tmp_path] if kind == "static" else []
    said = run_command(main, kind, "--out", tmp_path, *extra)
    assert said.returncode == 1 and "not an empty folder" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_static_space_needs_a_site(tmp_path):
    said = run_command(main, "static", "--site", tmp_path, "--out", tmp_path / "out")
    assert said.returncode == 1 and "has no index.html" in said.stderr and not (tmp_path / "out").exists()
