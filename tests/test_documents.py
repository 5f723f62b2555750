"""Documents name files that exist, and link to files and headings that exist."""

import importlib
import inspect
import json
import re
import tomllib
from dataclasses import fields, is_dataclass

import pytest

from analysis.cost.sweep import from_parquet, report
from analysis.debug.edits import EditKind
from analysis.trace import format_3
from analysis.trace.files import FORMAT, PARTS
from app.limits import VARIABLES
from subllm.routing import ROUTERS
from subllm.runs.routing_snapshot import RoutingSnapshot
from tests.architecture import PACKAGES, ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "assets").rglob("*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
FOLDERS = ("analysis", "app", "assets", "docs", "subllm", "tests")


def anchors(path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_are_there(document):
    for code in re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8")):
        path = code.strip().rstrip("/")
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+", path):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def python_blocks(path) -> list[str]:
    """Python of a document."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def test_the_example_of_a_router_runs():
    try:
        exec("\n".join(python_blocks(ROOT / "docs" / "adding-a-router.md")), {"__name__": "example"})
        assert "every-other" in ROUTERS
    finally:
        ROUTERS.pop("every-other", None)


def rows(path, columns: int) -> list[list[str]]:
    """Cells of the tables with so many columns, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", path.read_text(encoding="utf-8"), re.M)
    cells = [[cell.strip() for cell in re.split(r" \|(?: |$)", line)] for line in lines]
    return [row for row in cells if len(row) == columns and row[0] != "term" and row[0].strip("-")]


GLOSSARY, FORMATS = ROOT / "docs" / "glossary.md", ROOT / "docs" / "formats.md"


@pytest.mark.parametrize(
    "name",
    [re.search("`([^`]+)`", row[-1 if len(row) == 3 else 3])[1] for row in [*rows(GLOSSARY, 5), *rows(GLOSSARY, 3)]],
)
def test_names_of_the_glossary_exist(name):
    first, *parts = name.split(".")
    path, found = first, importlib.import_module(first)
    for part in parts:
        path = f"{path}.{part}"
        if inspect.ismodule(found) and not hasattr(found, part):
            found = importlib.import_module(path)
        elif is_dataclass(found) and part in [entry.name for entry in fields(found)]:
            found = None
        else:
            found = getattr(found, part)


@pytest.mark.parametrize(("english", "chinese"), [row[:2] for row in rows(GLOSSARY, 5)])
def test_terms_of_the_glossary_are_those_on_screen(english, chinese):
    strings = json.loads((ROOT / "assets" / "strings.json").read_text(encoding="utf-8")).values()
    pairs = [(str(entry["en"]).lower(), str(entry["zh"])) for entry in strings]
    assert any(english in en and chinese in zh for en, zh in pairs)


def documented_arrays(text: str) -> dict[str, str]:
    """Axes of the arrays that a part of a document describes, by name."""
    found = {}
    part = ""
    for row in re.findall(r"^\| (.*) \|$", text, re.M):
        cells = [cell.strip() for cell in row.split("|")]
        part = re.sub(r"\W", "", cells[0]) or part if len(cells) == 4 else ""
        names, axes = cells[-3:-1]
        if axes.startswith("("):
            found |= {f"{part}.{name}".lstrip("."): re.sub(r"\W", "", axes) for name in re.findall(r"`(\w+)`", names)}
    return found


def test_every_array_of_a_trace_is_documented_with_its_axes():
    text = FORMATS.read_text(encoding="utf-8")
    here = text[text.index("### Format 4") : text.index("### Format 3")]
    declared = {f"{name}.{field}": axes for name, part in PARTS.items() for field, (axes, _) in part.arrays().items()}
    assert documented_arrays(here) == declared
    assert f"`format` in `meta`: {FORMAT}; reads {format_3.FORMAT}" in text


def test_every_array_of_a_routing_snapshot_is_documented():
    text = FORMATS.read_text(encoding="utf-8")
    here = text[text.index("### Routing snapshots") : text.index("## What a conversion learned")]
    assert documented_arrays(here).keys() == {entry.name for entry in fields(RoutingSnapshot)}


def test_documented_edits_and_their_kinds_are_the_same():
    text = FORMATS.read_text(encoding="utf-8")
    here = text[text.index("## Edits") : text.index("## Rules")]
    assert re.findall(r"^\| `(\w+)", here, re.M) == [*EditKind]


def test_every_setting_is_documented_for_those_who_host():
    code = "".join(path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    table = re.findall(r"^\| `(SUBLLM_\w+)`", (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8"), re.M)
    assert {*table} == {*re.findall(r'get\("(SUBLLM_[A-Z_]+)"', code), *VARIABLES}


def test_the_version_is_one():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest[1] == version


@pytest.mark.parametrize("name", ["cpu-float32", "cpu-bfloat16"])
def test_shipped_tables_say_what_was_measured(name):
    file = ROOT / "assets" / "benchmarks" / f"{name}.parquet"
    table = file.with_suffix(".md").read_text(encoding="utf-8")
    assert table.strip() == report(*from_parquet(file.read_bytes())).strip()
