"""Rooms import each other in one direction, and the picture of them is what the code says."""

import pytest

from tests.architecture import FILE, ROOT, arrows, reduced, rooms, text

LAYERS = {
    "app": (
        ("command", "serve", "space"),  # start the app, or copy it, and import no other room of it
        ("gallery", "main"),
        ("views",),
        ("links",),
        ("state", "visitors"),
        ("reproduce", "shipped_corpus", "shipped_run"),
        ("components", "edit_list", "engine", "messages", "settings", "shipped_rules"),
        ("files", "limits", "log", "packed_prompt", "strings"),
    ),
    "analysis": (
        ("commands",),
        ("report",),
        ("figures", "run"),
        ("corpus",),
        ("lesson", "quality", "training"),
        ("debug",),
        ("cost", "trace"),
        ("guard",),
        ("errors",),
    ),
    "subllm": (
        ("demo",),
        ("convert", "train"),
        ("runs",),
        ("text",),
        ("checkpoints",),
        ("model",),
        ("configuration",),
        ("routing", "structure"),
        ("fetch",),
        ("assets", "child", "command"),
        ("atomic",),
        ("errors",),
    ),
}
"""From the specific to the general: a room imports rooms of later lines only."""


@pytest.mark.parametrize("package", LAYERS)
def test_rooms_import_only_more_general_ones(package):
    line_of = {f"{package}/{name}": number for number, line in enumerate(LAYERS[package]) for name in line}
    assert line_of.keys() == {room for room in rooms() if room.startswith(f"{package}/")}, "give a new room its line"
    wrong = [(a, b) for a, b in sorted(arrows()) if a in line_of and b in line_of and line_of[a] >= line_of[b]]
    assert not wrong


def test_what_a_facade_and_late_imports_bring_counts():
    found = arrows()
    assert ("analysis/run", "subllm/model") in found  # from subllm import SubllmCache
    assert ("app/views", "subllm/errors") in found


def test_arrows_that_follow_are_left_out_and_circles_found():
    assert reduced({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}
    with pytest.raises(ValueError, match="circle"):
        reduced({("a", "b"), ("b", "a")})


def test_the_picture_shows_the_code():
    assert FILE.read_text(encoding="utf-8") == text(), "python -m tests.architecture draws it anew"
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"({FILE.name})" in page
