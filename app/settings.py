"""What the operator allows, read from the environment.

| variable | meaning | default |
| --- | --- | --- |
| `SUBLLM_ROOTS` | folders below which checkpoints may be opened, separated as in `PATH` | `checkpoints` |
| `SUBLLM_HUB_MODELS` | names on the Hugging Face hub that may be opened, separated by commas | none |
| `SUBLLM_MAX_TOKENS` | longest prompt, in tokens | 8192 |
| `SUBLLM_MAX_SECONDS` | longest run, in seconds | 300 |
| `SUBLLM_HOME` | where the demo checkpoint is built | the user's cache folder |
| `SUBLLM_LOG_LEVEL` | how much the app logs: WARNING, or INFO for every run | WARNING |
"""

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from analysis.record import Progress
from subllm import CheckpointError, ConfigurationError
from subllm.checkpoints import fetch_checkpoint
from subllm.demo import build_demo, demo_folder
from subllm.run_files import FINAL, RUN_FILE

DEMO = "Demo: SmolLM2-135M as a SUBLLM"
SMALL = "Small: 10 million parameters, trained from scratch"
SHIPPED_RUN = "Shipped: a small SUBLLM, trained from scratch"
SHIPPED_BESIDE = {
    "llama": "Shipped: the LLaMA of its size",
    "no-bypass": "Shipped: the same without bypass",
    "stride": "Shipped: the same, keeping tokens at even distances",
    "random": "Shipped: the same, keeping random tokens",
}
_SHIPPED = Path(__file__).parents[1] / "assets" / "small"
_LONGEST_NAME = 80  # characters of what was typed that a message repeats
_DEPTH = 3  # folders below a root that are searched for checkpoints


@dataclass(frozen=True)
class Settings:
    """Limits and allowed checkpoints; see the module's docstring.

    Attributes:
        roots: absolute folders.
        hub_models: names.
        max_tokens: longest prompt.
        max_seconds: longest run.
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
            ConfigurationError: if a number is none, or not positive.
        """
        roots = environment.get("SUBLLM_ROOTS", "checkpoints").split(os.pathsep)
        names = environment.get("SUBLLM_HUB_MODELS", "").split(",")
        return cls(
            tuple(Path(root).expanduser().resolve() for root in roots if root.strip()),
            tuple(name.strip() for name in names if name.strip()),
            int(_positive(environment, "SUBLLM_MAX_TOKENS", 8192)),
            _positive(environment, "SUBLLM_MAX_SECONDS", 300),
        )

    def choices(self) -> list[str]:
        """Names of all checkpoints that can be chosen: the shipped ones, folders below the roots, hub names."""
        return [DEMO, SMALL, *self._folders("subllm"), *self.hub_models]

    def llamas(self) -> list[str]:
        """Names of the LLaMA checkpoints below the roots, to compare with."""
        return self._folders("llama")

    def runs(self) -> dict[str, Path]:
        """Folders of training runs by name: the shipped ones, and those below the roots."""
        shipped = {SHIPPED_RUN: _SHIPPED} | {name: _SHIPPED / "beside" / kind for kind, name in SHIPPED_BESIDE.items()}
        found = {name: folder for name, folder in shipped.items() if (folder / RUN_FILE).is_file()}
        for root in self.roots:
            for depth in range(1, _DEPTH + 1):
                for path in sorted(root.glob("/".join("*" * depth) + f"/{RUN_FILE}")):
                    if path.resolve().is_relative_to(root):
                        found[str(path.parent.relative_to(root))] = path.parent
        return found

    def locate(self, choice: str, progress: Progress) -> Path:
        """Folder of a chosen checkpoint; the demo is built and a hub name fetched if need be.

        Args:
            choice: one of `choices`, or a path typed by a user.
            progress: told what is being done; stages are those of `subllm.demo.STAGES`, and "fetching".

        Raises:
            CheckpointError: if it is not allowed, or cannot be had.
        """
        if choice == DEMO:
            return build_demo(progress)
        if choice == SMALL:
            return _SHIPPED / FINAL
        if choice in self.hub_models:
            progress(0.1, "fetching", name=choice)
            return fetch_checkpoint(choice)
        for root in self.roots if choice.strip() and choice.isprintable() else ():
            with suppress(OSError, RuntimeError):  # a name too long for a file, or a link that leads to itself
                path = (root / choice).resolve()
                if path.is_relative_to(root) and path.is_dir():
                    return path
        name = choice if len(choice) <= _LONGEST_NAME else f"{choice[:_LONGEST_NAME]}…"
        allowed = ", ".join([*map(str, self.roots), *self.hub_models]) or "none"
        raise CheckpointError(
            f"{name!r} is neither a folder below the configured roots nor an allowed hub name (allowed: {allowed}). "
            "Whoever runs the app can add it with SUBLLM_ROOTS or SUBLLM_HUB_MODELS."
        )

    def _folders(self, kind: str) -> list[str]:
        demo = demo_folder().resolve()
        found = []
        for root in self.roots:
            for depth in range(1, _DEPTH + 1):
                for path in sorted(root.glob("/".join("*" * depth) + "/config.json")):
                    folder = path.parent.resolve()
                    if not folder.is_relative_to(demo) and f'"{kind}"' in path.read_text(errors="replace"):
                        found.append(str(path.parent.relative_to(root)))
        return found


def checkpoint_option(choice: str) -> str:
    """What names a chosen checkpoint in a command, after a space; nothing for the demo, which commands take anyway.

    Args:
        choice: one of `Settings.choices`.
    """
    if choice == DEMO:
        return ""
    return f" --checkpoint {shlex.quote(f'assets/{_SHIPPED.name}/{FINAL}' if choice == SMALL else choice)}"


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigurationError(f"{name} is {text!r}; it must be a positive number, such as {default}.")
    return value
