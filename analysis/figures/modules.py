"""ECMAScript modules joined into the one script that a component or a report takes; there is no build step."""

import re
from pathlib import Path

_IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "(\.{1,2}/[\w./-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:const|let|function|class|async function) (\w+))", re.MULTILINE)
_NAME = re.compile(r"^(?:const|let|function|class|async function) (\w+)", re.MULTILINE)


def join(entry: Path) -> str:
    """The script of a module and of all that it imports, each once, after what it needs itself.

    Imports and exports are by name, one import a line, so that a line can be taken away; what the entry exports as
    default stays.

    Args:
        entry: module that nothing imports.

    Raises:
        ValueError: if a module imports what another does not export, or itself in a circle, or if two modules have a
            name in common.
    """
    joined: dict[Path, str] = {}
    exported: dict[Path, set[str]] = {}
    owners: dict[str, Path] = {}

    def add(path: Path, above: tuple[Path, ...]) -> None:
        if path in above:
            raise ValueError(f"{path.name} imports itself: {' -> '.join(each.name for each in (*above, path))}")
        if path in joined:
            return
        source = path.read_text(encoding="utf-8")
        for names, file in _IMPORT.findall(source):
            other = (path.parent / file).resolve()
            add(other, (*above, path))
            missing = set(names.split(", ")) - exported[other]
            if missing:
                raise ValueError(
                    f"{path.name} imports {', '.join(sorted(missing))}, which {other.name} does not export."
                )
        exported[path] = set(_EXPORT.findall(source))
        joined[path] = _EXPORT.sub("", _IMPORT.sub("", source))
        for name in _NAME.findall(joined[path]):
            if name in owners:
                raise ValueError(f"Both {owners[name].name} and {path.name} have a {name}.")
            owners[name] = path

    add(entry.resolve(), ())
    return "\n".join(joined.values())
