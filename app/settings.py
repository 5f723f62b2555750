"""What the operator allows, read from environment variables.

| variable | meaning | default |
| --- | --- | --- |
| `SUBLLM_ROOTS` | folders below which checkpoints may be opened, separated as in `PATH` | `checkpoints` |
| `SUBLLM_HUB_MODELS` | names on the Hugging Face hub that may be opened, separated by commas | none |
| `SUBLLM_PROFILE` | limits, which further variables override (`app.limits`): private, class or public | private |
| `SUBLLM_FRAME_ORIGIN` | of the page that shows the app in a frame, and is told the app's address | none |
| `SUBLLM_HOME` | where the demo checkpoint is built | the user's cache folder |
| `SUBLLM_LOG_LEVEL` | what is logged: WARNING, INFO for actions, DEBUG for stages (`app.log`) | INFO unless private |
"""

import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from analysis.corpus.schema import RUN as CORPUS_FILE
from analysis.guard import Progress, silent
from app import log
from app.files import configuration
from app.limits import Feature, Limits
from subllm import CheckpointError, ConfigurationError, SubllmConfig, assets, demo
from subllm.assets import ASSETS
from subllm.checkpoints.files import read_start
from subllm.checkpoints.load import fetch_checkpoint
from subllm.checkpoints.weights import has_weights
from subllm.errors import shortened
from subllm.runs.folder import FINAL, RUN_FILE

DEMO, DEEP, SMALL = "shipped:demo", "shipped:deep", "shipped:small"  # ids; `app.strings.name_of` has the names
DEMOS = {f"shipped:{name}": name for name in assets.DEMOS}
_ROUTERS = {  # the id of each stands for its checkpoint and for its training run
    f"shipped:{name}": folder
    for name, folder in assets.TRAINED.items()
    if name != "small" and (folder / RUN_FILE).is_file()
}
SHIPPED = (DEMO, DEEP, SMALL, *_ROUTERS)
OLD_IDS = {  # in links that were made before checkpoints had ids
    "Demo: SmolLM2-135M as a SUBLLM": DEMO,
    "Small: 10 million parameters, trained from scratch": SMALL,
}
SHIPPED_RUN = "shipped:run"
SHIPPED_CORPUS = "shipped:corpus"
_CORPUS = ASSETS / "corpus" / "demo"
_BESIDE = (
    "llama", "subllm-other-seed", "llama-other-seed", "no-bypass", "stride", "random", "mod",
    "subllm-short", "llama-short", "no-bypass-short", "stride-short", "random-short",
)  # fmt: skip
SHIPPED_BESIDE = {kind: f"shipped:{kind}" for kind in _BESIDE}
BESIDE = (SHIPPED_BESIDE["llama"],)  # runs that the page shows beside the shipped one: of as many tokens
_SHIPPED = assets.TRAINED["small"]
_WITH_REPOSITORY = {SMALL: _SHIPPED / FINAL} | {name: folder / FINAL for name, folder in _ROUTERS.items()}
_DEPTH = 3  # folders below a root that are searched for checkpoints
_READ = 1 << 16  # bytes of a config.json in which the kind of model has to stand
_SUBLLM, _LLAMA, _OBJECT = _MARKS = (b'"subllm"', b'"llama"', b"{")  # what is looked for in there
_FRESH = 5.0  # seconds for which a search holds: every page asks at every rerun
_fetched: dict[str, Path] = {}  # folders of the hub models that this process has located, by name


@dataclass(frozen=True)
class Settings:
    """Limits and allowed checkpoints; see the module's docstring.

    Attributes:
        roots: absolute folders below which checkpoints may be opened.
        hub_models: names on the Hugging Face hub that may be opened.
        limits: how much visitors may ask for.
        frame_origin: of the page that shows the app in a frame, such as https://huggingface.co.
    """

    roots: tuple[Path, ...]
    hub_models: tuple[str, ...]
    limits: Limits
    frame_origin: str | None = None

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
        log.level(environment)
        return cls(
            tuple(_root(root) for root in roots if root.strip()),
            tuple(name.strip() for name in names if name.strip()),
            Limits.read(environment),
            _origin(environment.get("SUBLLM_FRAME_ORIGIN", "")),
        )

    def choices(self) -> list[str]:
        """Ids of all checkpoints that can be chosen: the shipped ones, folders below the roots, hub names."""
        return [*SHIPPED, *self._search().subllms, *self.hub_models]

    def llamas(self) -> list[str]:
        """Names of the LLaMA checkpoints below the roots, to compare with."""
        return list(self._search().llamas)

    def runs(self) -> dict[str, Path]:
        """Folders of training runs by id: the shipped ones, and those below the roots."""
        shipped = {SHIPPED_RUN: _SHIPPED} | {name: _SHIPPED / "beside" / kind for kind, name in SHIPPED_BESIDE.items()}
        found = {name: folder for name, folder in shipped.items() if (folder / RUN_FILE).is_file()}
        return found | _ROUTERS | self._search().runs

    def corpora(self) -> dict[str, Path]:
        """Folders of corpus results by id: the shipped one, and those below the roots."""
        shipped = {SHIPPED_CORPUS: _CORPUS} if (_CORPUS / CORPUS_FILE).is_file() else {}
        return shipped | self._search().corpora

    def locate(self, choice: str, progress: Progress) -> Path:
        """Folder of a chosen checkpoint; a demo is built and a hub model is downloaded if necessary.

        Args:
            choice: one of `choices`, or a path that a visitor typed.
            progress: receives what is being done; stages are those of `subllm.demo.STAGES`, and "fetching".

        Raises:
            CheckpointError: if it is not allowed, or cannot be built or downloaded.
        """
        if choice in DEMOS:
            return demo.build_demo(progress, DEMOS[choice])
        if choice in _WITH_REPOSITORY:
            return _WITH_REPOSITORY[choice]
        if choice in self.hub_models:
            progress(0.1, "fetching", name=choice)
            _fetched[choice] = fetch_checkpoint(choice)
            return _fetched[choice]
        typed = Feature.FOLDERS in self.limits.features
        known = typed or choice in self.choices() or choice in self.llamas()
        for root in self.roots if known and choice.strip() and choice.isprintable() else ():
            path = _resolved(root / choice)
            if path.is_relative_to(root) and os.path.isdir(path):  # False, too, for a name that no file can have
                return path
        raise CheckpointError(
            "{name!r} is neither a folder below the configured roots nor an allowed hub name. Choose one from the "
            "list; whoever runs the app can add it with SUBLLM_ROOTS or SUBLLM_HUB_MODELS.",
            name=shortened(choice),
        )

    def configuration(self, choice: str) -> SubllmConfig | None:
        """Configuration of a chosen checkpoint; None if it has to be downloaded first, which `locate` does.

        Args:
            choice: as for `locate`.

        Raises:
            SubllmError: if it is not allowed, or cannot be read.
        """
        if choice in DEMOS:
            return configuration(demo.SHIPPED[DEMOS[choice]])  # what is built from it has the same
        if choice in self.hub_models:
            return configuration(_fetched[choice]) if choice in _fetched else None
        return configuration(self.locate(choice, silent))

    def _search(self) -> "_Found":
        when = (int(time.monotonic() / _FRESH), *map(_changed, self.roots))
        return _find(self.roots, tuple(_resolved(demo.demo_folder(name)) for name in DEMOS.values()), when)


@dataclass(frozen=True)
class _Found:
    """What is below the roots, by its relative path: SUBLLM and LLaMA checkpoints, training runs, corpus results."""

    subllms: tuple[str, ...]
    llamas: tuple[str, ...]
    runs: dict[str, Path]
    corpora: dict[str, Path]


@lru_cache(maxsize=4)
def _find(roots: tuple[Path, ...], demos: tuple[Path, ...], when: tuple[int, ...]) -> _Found:
    """Search the roots; what cannot be read, or is not a regular file, is ignored.

    Args:
        roots: absolute folders.
        demos: folders of the demo checkpoints, which are always offered.
        when: changes when the result is out of date.
    """
    subllms: list[str] = []
    llamas: list[str] = []
    runs: dict[str, Path] = {}
    corpora: dict[str, Path] = {}
    for root in roots:
        for folder in _folders_below(root):
            offered = any(_resolved(folder).is_relative_to(built) for built in demos)
            name = str(folder.relative_to(root))
            config = () if offered else _marks(folder / "config.json", root)
            if config and not has_weights(folder):  # what a conversion or a trainer keeps has a configuration, too
                config = ()
            if _SUBLLM in config:
                subllms.append(name)
            if _LLAMA in config:
                llamas.append(name)
            if _OBJECT in _marks(folder / RUN_FILE, root):
                runs.setdefault(name, folder)
            if _OBJECT in _marks(folder / CORPUS_FILE, root):
                corpora.setdefault(name, folder)
    return _Found(tuple(dict.fromkeys(subllms)), tuple(dict.fromkeys(llamas)), runs, corpora)


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
    except (OSError, ValueError):  # gone, or replaced by a pipe
        return ()


@lru_cache(maxsize=4096)
def _marks_of(path: Path, *_: int) -> tuple[bytes, ...]:
    """The `_MARKS` at the beginning of a file, which is read again when its size or time has changed."""
    start = read_start(path, _READ)
    return tuple(mark for mark in _MARKS if mark in start)


def _resolved(path: Path) -> Path:
    """The absolute path with links resolved; circular links are not an error."""
    return Path(os.path.realpath(path))


def checkpoint_option(choice: str) -> str:
    """The option that names a checkpoint in a command, after a space; empty for the demo, which is the default.

    Args:
        choice: one of `Settings.choices`.
    """
    return "" if choice == DEMO else f" --checkpoint {shlex.quote(checkpoint_path(choice))}"


def checkpoint_path(choice: str) -> str:
    """How a command names a checkpoint: by its folder, seen from the project's or from the root, as a demo or hub name.

    Args:
        choice: one of `Settings.choices`.
    """
    if choice in DEMOS:
        return DEMOS[choice]
    shipped = _WITH_REPOSITORY.get(choice)
    return choice if shipped is None else f"assets/{shipped.relative_to(ASSETS)}"


def is_on_hub(choice: str) -> bool:
    """Whether a chosen checkpoint is fetched from the Hugging Face hub.

    Args:
        choice: one of `Settings.choices`.
    """
    return choice in Settings.read().hub_models


def _root(text: str) -> Path:
    try:
        return _resolved(Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigurationError(
            "SUBLLM_ROOTS has {text!r}, and there is no user of that name; write the folder's absolute path.", text=text
        ) from error


def _origin(text: str) -> str | None:
    if not text.strip():
        return None
    if re.fullmatch(r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?", text.strip(), re.ASCII) is None:
        raise ConfigurationError(
            "SUBLLM_FRAME_ORIGIN is {text!r}; it must be the beginning of an address, such as https://huggingface.co.",
            text=shortened(text),
        )
    return text.strip()
