"""What the operator allows, read from environment variables.

| variable | meaning | default |
| --- | --- | --- |
| `SUBLLM_ROOTS` | folders below which checkpoints may be opened, separated as in `PATH` | `checkpoints` |
| `SUBLLM_HUB_MODELS` | names on the Hugging Face hub that may be opened, separated by commas | none |
| `SUBLLM_MAX_TOKENS` | longest prompt, in tokens | 8192 |
| `SUBLLM_MAX_SECONDS` | longest run, in seconds | 300 |
| `SUBLLM_HOME` | where the demo checkpoint is built | the user's cache folder |
| `SUBLLM_LOG_LEVEL` | how much the app logs: WARNING, or INFO for every run | WARNING |
"""

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from analysis.guard import Progress, silent
from app.files import configuration
from subllm import CheckpointError, ConfigurationError, SubllmConfig
from subllm.assets import ASSETS
from subllm.checkpoints.load import fetch_checkpoint
from subllm.demo import SHIPPED as _SHIPPED_DEMO
from subllm.demo import build_demo, demo_folder
from subllm.runs.folder import FINAL, RUN_FILE

DEMO, SMALL = SHIPPED = ("shipped:demo", "shipped:small")  # ids of checkpoints; `app.strings.name_of` has their names
OLD_IDS = {  # in links that were made before checkpoints had ids
    "Demo: SmolLM2-135M as a SUBLLM": DEMO,
    "Small: 10 million parameters, trained from scratch": SMALL,
}
SHIPPED_RUN = "shipped:run"
SHIPPED_BESIDE = {kind: f"shipped:{kind}" for kind in ("llama", "no-bypass", "stride", "random")}
_SHIPPED = ASSETS / "small"
_LONGEST_NAME = 80  # characters of what was typed that a message repeats
_DEPTH = 3  # folders below a root that are searched for checkpoints
_READ = 1 << 16  # bytes of a config.json in which the kind of model has to stand
_SUBLLM, _LLAMA, _OBJECT = _MARKS = (b'"subllm"', b'"llama"', b"{")  # what is looked for in there
_FRESH = 5.0  # seconds for which a search holds: every page asks at every rerun
_MOST_TOKENS = 10**9
_fetched: dict[str, Path] = {}  # folders of the hub models that this process has located, by name


@dataclass(frozen=True)
class Settings:
    """Limits and allowed checkpoints; see the module's docstring.

    Attributes:
        roots: absolute folders below which checkpoints may be opened.
        hub_models: names on the Hugging Face hub that may be opened.
        max_tokens: maximum length of a prompt, in tokens.
        max_seconds: maximum duration of a run.
    """

    roots: tuple[Path, ...]
    hub_models: tuple[str, ...]
    max_tokens: int
    max_seconds: float

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Settings from environment variables.

        Args:
            environment: variables by name.

        Raises:
            ConfigurationError: if one cannot be read; says what is allowed.
        """
        roots = environment.get("SUBLLM_ROOTS", "checkpoints").split(os.pathsep)
        names = environment.get("SUBLLM_HUB_MODELS", "").split(",")
        level = environment.get("SUBLLM_LOG_LEVEL", "WARNING")
        if level.upper() not in logging.getLevelNamesMapping():
            raise ConfigurationError(
                "SUBLLM_LOG_LEVEL is {level!r}; it must be WARNING, INFO, DEBUG or ERROR.", level=level
            )
        return cls(
            tuple(_root(root) for root in roots if root.strip()),
            tuple(name.strip() for name in names if name.strip()),
            _tokens(environment),
            _seconds(environment),
        )

    def choices(self) -> list[str]:
        """Ids of all checkpoints that can be chosen: the shipped ones, folders below the roots, hub names."""
        return [DEMO, SMALL, *self._search().subllms, *self.hub_models]

    def llamas(self) -> list[str]:
        """Names of the LLaMA checkpoints below the roots, to compare with."""
        return list(self._search().llamas)

    def runs(self) -> dict[str, Path]:
        """Folders of training runs by id: the shipped ones, and those below the roots."""
        shipped = {SHIPPED_RUN: _SHIPPED} | {name: _SHIPPED / "beside" / kind for kind, name in SHIPPED_BESIDE.items()}
        found = {name: folder for name, folder in shipped.items() if (folder / RUN_FILE).is_file()}
        return found | self._search().runs

    def locate(self, choice: str, progress: Progress) -> Path:
        """Folder of a chosen checkpoint; the demo is built and a hub model is downloaded if necessary.

        Args:
            choice: one of `choices`, or a path that a visitor typed.
            progress: receives what is being done; stages are those of `subllm.demo.STAGES`, and "fetching".

        Raises:
            CheckpointError: if it is not allowed, or cannot be built or downloaded.
        """
        if choice == DEMO:
            return build_demo(progress)
        if choice == SMALL:
            return _SHIPPED / FINAL
        if choice in self.hub_models:
            progress(0.1, "fetching", name=choice)
            _fetched[choice] = fetch_checkpoint(choice)
            return _fetched[choice]
        for root in self.roots if choice.strip() and choice.isprintable() else ():
            path = _resolved(root / choice)
            if path.is_relative_to(root) and os.path.isdir(path):  # False, too, for a name that no file can have
                return path
        name = choice if len(choice) <= _LONGEST_NAME else f"{choice[:_LONGEST_NAME]}…"
        allowed = ", ".join([*map(str, self.roots), *self.hub_models]) or "none"
        raise CheckpointError(
            "{name!r} is neither a folder below the configured roots nor an allowed hub name (allowed: {allowed}). "
            "Whoever runs the app can add it with SUBLLM_ROOTS or SUBLLM_HUB_MODELS.",
            name=name,
            allowed=allowed,
        )

    def configuration(self, choice: str) -> SubllmConfig | None:
        """Configuration of a chosen checkpoint; None if it has to be downloaded first, which `locate` does.

        Args:
            choice: as for `locate`.

        Raises:
            SubllmError: if it is not allowed, or cannot be read.
        """
        if choice == DEMO:
            return configuration(_SHIPPED_DEMO)  # what is built from it has the same
        if choice in self.hub_models:
            return configuration(_fetched[choice]) if choice in _fetched else None
        return configuration(self.locate(choice, silent))

    def _search(self) -> "_Found":
        when = (int(time.monotonic() / _FRESH), *map(_changed, self.roots))
        return _find(self.roots, _resolved(demo_folder()), when)


@dataclass(frozen=True)
class _Found:
    """What is below the roots, by its relative path: SUBLLM and LLaMA checkpoints, and training runs."""

    subllms: tuple[str, ...]
    llamas: tuple[str, ...]
    runs: dict[str, Path]


@lru_cache(maxsize=4)
def _find(roots: tuple[Path, ...], demo: Path, when: tuple[int, ...]) -> _Found:
    """Search the roots; what cannot be read, or is not a regular file, is ignored.

    Args:
        roots: absolute folders.
        demo: folder of the demo checkpoint, which is always offered.
        when: changes when the result is out of date.
    """
    subllms: list[str] = []
    llamas: list[str] = []
    runs: dict[str, Path] = {}
    for root in roots:
        for folder in _folders_below(root):
            name = str(folder.relative_to(root))
            config = _marks(folder / "config.json", root)
            if _SUBLLM in config and not _resolved(folder).is_relative_to(demo):
                subllms.append(name)
            if _LLAMA in config and not _resolved(folder).is_relative_to(demo):
                llamas.append(name)
            if _OBJECT in _marks(folder / RUN_FILE, root):
                runs.setdefault(name, folder)
    return _Found(tuple(dict.fromkeys(subllms)), tuple(dict.fromkeys(llamas)), runs)


def _changed(root: Path) -> int:
    """When a folder's entries changed last: a new folder in a root is seen at once, a deeper one a little later."""
    try:
        return root.stat().st_mtime_ns
    except OSError:
        return 0


def _folders_below(root: Path) -> Iterator[Path]:
    """Folders below a root whose names can be shown, to a depth of `_DEPTH`."""
    level = [root]
    for _ in range(_DEPTH):
        level = [child for folder in level for child in _folders_in(folder)]
        yield from level


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) or entry.is_symlink()]
    except OSError:
        return []
    # a name that is no UTF-8, or has control characters in it, could not be shown or chosen
    return [folder / name for name in sorted(names) if name.isprintable() and os.path.isdir(folder / name)]


def _marks(path: Path, root: Path) -> tuple[bytes, ...]:
    """The `_MARKS` at the beginning of a regular file below a root; none if it cannot be read."""
    real = _resolved(path)
    if not real.is_relative_to(root) or not os.path.isfile(real):
        return ()
    try:
        status = real.stat()
        return _marks_of(real, status.st_size, status.st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=4096)
def _marks_of(path: Path, *_: int) -> tuple[bytes, ...]:
    """The `_MARKS` at the beginning of a file, which is read again when its size or time has changed."""
    with path.open("rb") as file:
        start = file.read(_READ)
    return tuple(mark for mark in _MARKS if mark in start)


def _resolved(path: Path) -> Path:
    """The absolute path with links resolved; circular links are not an error."""
    return Path(os.path.realpath(path))


def checkpoint_option(choice: str) -> str:
    """The option that names a checkpoint in a command, after a space; empty for the demo, which is the default.

    Args:
        choice: one of `Settings.choices`.
    """
    if choice == DEMO:
        return ""
    return f" --checkpoint {shlex.quote(f'assets/{_SHIPPED.name}/{FINAL}' if choice == SMALL else choice)}"


def _root(text: str) -> Path:
    try:
        return _resolved(Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigurationError(
            "SUBLLM_ROOTS has {text!r}, and there is no user of that name; write the folder's absolute path.", text=text
        ) from error


def _tokens(environment: Mapping[str, str]) -> int:
    text = environment.get("SUBLLM_MAX_TOKENS", "8192")
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value <= _MOST_TOKENS:
        raise ConfigurationError(
            "SUBLLM_MAX_TOKENS is {text!r}; it must be a whole number from 1 to {most:,}, such as 8192.",
            text=text,
            most=_MOST_TOKENS,
        )
    return value


def _seconds(environment: Mapping[str, str]) -> float:
    text = environment.get("SUBLLM_MAX_SECONDS", "300")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigurationError(
            "SUBLLM_MAX_SECONDS is {text!r}; it must be a positive number, such as 300, or inf for no limit.", text=text
        )
    return value
