"""Command line of training.

    python -m subllm.train --config assets/training/small.json --data packed --out runs/subllm
    python -m subllm.train --config assets/training/small.json --data packed --out runs/llama --dense
    torchrun --nproc-per-node 8 -m subllm.train --config ... --data ... --out ...

The same command goes on with a run that was stopped or killed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import SubllmError, TrainingStopped
from .config import ABLATIONS, TrainConfig
from .loop import train


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> int:
    """Command line; a user's mistake is one line on standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m subllm.train", description="Train a SUBLLM, or its dense LLaMA.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the fields of TrainConfig")
    parser.add_argument("--data", type=Path, required=True, help="folder made by python -m subllm.data pack")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--dense", action="store_true", help="train a LLaMA of the same size")
    parser.add_argument("--ablation", choices=ABLATIONS, help="train a SUBLLM with one idea taken away")
    parser.add_argument(
        "--set", dest="settings", type=_setting, nargs="+", default=[], metavar="NAME=VALUE", help="fields to change"
    )
    arguments = parser.parse_args()
    changes = dict(arguments.settings)
    if arguments.dense:
        changes["dense"] = True
    if arguments.ablation:
        changes["ablation"] = arguments.ablation
    try:
        folder = train(TrainConfig.read(arguments.config, **changes), arguments.data, arguments.out)
    except (SubllmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 130 if isinstance(error, TrainingStopped) else 1
    print(f"Wrote {folder}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
