"""Command line of training.

    subllm train --config assets/training/small.json --data packed --out runs/subllm
    subllm train --config assets/training/small.json --data packed --out runs/llama --dense
    torchrun --nproc-per-node 8 -m subllm.train --config ... --data ... --out ...

The same command resumes a run that was stopped or killed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..command import Arguments, command
from ..errors import SubllmError
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


@command(SubllmError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm train",
        description="Train a SUBLLM from scratch, or the LLaMA of its size. The same command resumes a stopped run.",
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the fields of TrainConfig")
    parser.add_argument("--data", type=Path, required=True, help="folder written by subllm data pack")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--dense", action="store_true", help="train a LLaMA of the same size")
    parser.add_argument("--ablation", choices=ABLATIONS, help="train a SUBLLM without one of its ideas")
    parser.add_argument(
        "--set",
        dest="settings",
        type=_setting,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="fields of the configuration to change; those of the model as model.NAME=VALUE",
    )
    chosen = parser.parse_args(arguments)
    changes = dict(chosen.settings)
    if chosen.dense:
        changes["dense"] = True
    if chosen.ablation:
        changes["ablation"] = chosen.ablation
    folder = train(TrainConfig.read(chosen.config, **changes), chosen.data, chosen.out)
    print(f"Wrote {folder}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
