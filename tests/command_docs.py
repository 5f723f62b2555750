"""docs/commands.md, from what the commands print; `python -m tests.command_docs` writes it anew."""

import contextlib
import importlib
import io
import os
import re
from pathlib import Path
from unittest import mock

from app.command import COMMANDS, usage

FILE = Path(__file__).parents[1] / "docs" / "commands.md"


def printed(module: str, *arguments: str) -> str:
    """What a command's help prints."""
    command, wide = importlib.import_module(module).main, mock.patch.dict(os.environ, {"COLUMNS": "100"})
    with contextlib.redirect_stdout(io.StringIO()) as said, wide, contextlib.suppress(SystemExit):
        command([*arguments, "--help"])
    return said.getvalue().strip()


def text() -> str:
    """The document."""
    parts = ["# Commands", "", "What `--help` prints; a test keeps this page up to date.", "", "```", usage(), "```"]
    for name, (module, _) in COMMANDS.items():
        parts += ["", f"## subllm {name}", "", "```", printed(module), "```"]
        own = re.search(r"\[-h\]\s+\{([a-z,-]+)\}\s+\.\.\.", parts[-2])  # usage: subllm data [-h] {tokenizer,pack} ...
        for inner in own[1].split(",") if own else ():
            parts += ["", f"### subllm {name} {inner}", "", "```", printed(module, inner), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
