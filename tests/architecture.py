"""docs/architecture.svg, the rooms and what they import, drawn from the code.

`python -m tests.architecture` writes it anew. A room is a folder of a package, or a module beside its folders. Arrows
that follow from others are left out: who imports the model imports what the model imports.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "architecture.svg"
PACKAGES = {
    "app": "what a person sees",
    "analysis": "what is measured about a run",
    "subllm": "the model, and how it is made",
}
_WIDTH, _BAND_LEFT, _BOX, _HEIGHT, _STEP, _TITLE = 980, 20, 26, 30, 62, 40  # pixels

Arrows = set[tuple[str, str]]


def arrows() -> Arrows:
    """Pairs of rooms, such as ("analysis/debug", "analysis/trace"), the first of which imports the second."""
    found = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent == ROOT / package and not _defines_something(path):
                continue  # a facade, or an old spelling of a command
            for name in _imports(path):
                target = _file_of(name)
                if target is not None and _room_of(target) != _room_of(path):
                    found.add((_room_of(path), _room_of(target)))
    return found


def rooms() -> set[str]:
    """All rooms."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {_room_of(path) for path in files if path.parent.parent != ROOT or _defines_something(path)}


def _room_of(path: Path) -> str:
    return "/".join(path.relative_to(ROOT).with_suffix("").parts[:2])


@cache
def _defines_something(path: Path) -> bool:
    return path.name != "__init__.py" and any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign) for node in _parsed(path).body
    )


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Packages that a file names in imports, at any depth of it; relative ones are left out."""
    found = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports when it runs, also late; what is for type checkers alone is left out."""
    package = path.relative_to(ROOT).parent.parts
    nodes: list[ast.AST] = [_parsed(path)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            nodes += ast.iter_child_nodes(node)


def _file_of(name: str) -> Path | None:
    """File that a name comes from, looked up where a facade has it from; None for names of other packages."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    for length in range(len(rest), -1, -1):
        module = ROOT.joinpath(package, *rest[:length])
        if module.with_suffix(".py").is_file():
            return module.with_suffix(".py")
        facade = module / "__init__.py"
        if facade.is_file() and module != ROOT / package:
            return facade
        if facade.is_file():
            return _told_by(facade, name)
    return None


def _told_by(facade: Path, name: str) -> Path | None:
    """File that a package's `__init__` has a name from, for type checkers too where the import comes late."""
    last = name.rpartition(".")[2]
    for node in ast.walk(_parsed(facade)):
        if isinstance(node, ast.ImportFrom) and node.level and last in [alias.name for alias in node.names]:
            return _file_of(f"{facade.parent.name}.{node.module}.{last}" if node.module else name)
    return None


def reduced(pairs: Arrows) -> Arrows:
    """The pairs without those that follow from others.

    Raises:
        ValueError: if the pairs go round in a circle.
    """
    below = {node: {b for a, b in pairs if a == node} for pair in pairs for node in pair}

    @cache
    def reached(node: str) -> frozenset[str]:
        return frozenset(below[node]).union(*(reached(other) for other in below[node]))

    try:
        return {(a, b) for a, b in pairs if not any(b in reached(other) for other in below[a])}
    except RecursionError as error:
        raise ValueError("The rooms import each other in a circle.") from error


def _ranked(nodes: Iterable[str], pairs: Arrows) -> list[list[str]]:
    """Rows of nodes: each one is above everything that it points to, as low as it can be, or on top without arrows."""

    @cache
    def height(node: str) -> int:
        return 1 + max((height(b) for a, b in pairs if a == node), default=-1)

    linked = {node for pair in pairs for node in pair}
    top = max(map(height, linked))
    rows: list[list[str]] = [[] for _ in range(top + 1)]
    for node in sorted(nodes):
        rows[height(node) if node in linked else top].append(node)
    return rows[::-1]


def _laid_out(rows: list[list[str]], pairs: Arrows) -> tuple[list[list[str]], list[list[str]]]:
    """The rows with a place for every arrow that passes them, in an order with few crossings; and every arrow's way."""
    row_of = {node: number for number, row in enumerate(rows) for node in row}
    ways = []
    for a, b in sorted(pairs):
        passing = [f"{a}>{b}>{number}" for number in range(row_of[a] + 1, row_of[b])]
        for number, place in enumerate(passing, row_of[a] + 1):
            rows[number].append(place)
        ways.append([a, *passing, b])
    near: dict[str, list[str]] = {node: [] for row in rows for node in row}
    for way in ways:
        for one, other in pairwise(way):
            near[one].append(other)
            near[other].append(one)
    for sweep in range(24):
        place = {node: (number + 0.5) / len(row) for row in rows for number, node in enumerate(row)}
        for number, row in enumerate(rows if sweep % 2 else rows[::-1]):
            if number:
                row.sort(key=lambda node: (fmean(place[other] for other in near[node]) if near[node] else 0.5, node))
                place |= {node: (position + 0.5) / len(row) for position, node in enumerate(row)}
    return rows, ways


def _band(package: str, pairs: Arrows, top: int) -> tuple[list[str], int]:
    """SVG elements of a package, and the height that they take."""
    inside = {room for room in rooms() if room.startswith(f"{package}/")}
    own = reduced({(a, b) for a, b in pairs if a in inside and b in inside})
    rows, ways = _laid_out(_ranked(inside, own), own)
    height = _TITLE + len(rows) * _STEP
    middle: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        for position, node in enumerate(row):
            x = _BAND_LEFT + (position + 0.5) * (_WIDTH - 2 * _BAND_LEFT) / len(row)
            middle[node] = (round(x), top + _TITLE + number * _STEP + _HEIGHT // 2 + 8)
    elements = [
        f'<rect class="{package}" x="8" y="{top}" width="{_WIDTH - 16}" height="{height}" rx="10"/>',
        f'<text class="package" x="24" y="{top + 25}">{package}/  {PACKAGES[package]}</text>',
    ]
    for way in ways:
        x, y = middle[way[0]]
        path = f"M{x} {y + _HEIGHT // 2}"
        y += _HEIGHT // 2
        for node in way[1:]:
            next_x, next_y = middle[node]
            next_y -= _HEIGHT // 2 + (6 if node == way[-1] else 0)
            path += f"C{x} {y + 16} {next_x} {next_y - 16} {next_x} {next_y}"
            if node != way[-1]:
                path += f"V{next_y + _HEIGHT}"
            x, y = next_x, next_y + _HEIGHT
        elements.append(f'<path d="{path}"/>')
    for room in sorted(inside):
        x, y = middle[room]
        name = room.partition("/")[2] + ("/" if (ROOT / room).is_dir() else ".py")
        width = _BOX + 8 * len(name)
        elements += [
            f'<rect class="room" x="{x - width // 2}" y="{y - _HEIGHT // 2}" width="{width}" height="{_HEIGHT}"/>',
            f'<text x="{x}" y="{y + 5}">{name}</text>',
        ]
    return elements, height


def text() -> str:
    """The picture."""
    pairs, top, elements = arrows(), 8, []
    between = {(a.partition("/")[0], b.partition("/")[0]) for a, b in pairs}
    for number, package in enumerate(PACKAGES):
        if number:
            above = [other for other in PACKAGES if (other, package) in between and other != package]
            label = " and ".join(f"{other}/" for other in above) + (" import" if len(above) > 1 else " imports")
            elements.append(f'<path d="M{_WIDTH // 2} {top - 26}V{top - 6}"/>')
            elements.append(f'<text class="note" x="{_WIDTH // 2 + 14}" y="{top - 11}">{label} {package}/</text>')
        band, height = _band(package, pairs, top)
        elements += band
        top += height + 30
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top - 22}" width="{_WIDTH}" role="img">
<title>The rooms of the code; an arrow means that the upper room imports the lower one</title>
<style>
text {{ font: 14px ui-monospace, monospace; fill: #222; text-anchor: middle }}
text.package {{ font: bold 15px sans-serif; text-anchor: start }}
text.note {{ font: 13px sans-serif; text-anchor: start }}
path {{ fill: none; stroke: #555; stroke-width: 1.3; marker-end: url(#head) }}
rect.room {{ fill: #fff; stroke: #555; rx: 5px }}
.app {{ fill: #fbe9d7 }} .analysis {{ fill: #e3eefb }} .subllm {{ fill: #e4f3e4 }}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#555"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>
{chr(10).join(elements)}
</svg>
"""


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
