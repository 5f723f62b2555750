"""`subllm predict`: time and memory on hardware of the table, from a checkpoint's configuration alone.

subllm predict --checkpoint DIR --hardware "NVIDIA H100 SXM" --tokens 8192
"""

import argparse
import sys
from pathlib import Path

import torch

from subllm.checkpoints.load import read_config
from subllm.command import Arguments

from ..cost.calibration import this_machine
from ..cost.hardware import HARDWARE, find_hardware, load_hardware
from ..cost.predict import HERE, break_even, changed, predict
from ..cost.roofline import PHASES, Scenario
from ..cost.sizes import BYTES
from .arguments import analysis_command, folder_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm predict", description="Predict time and memory against the dense model, on any hardware."
    )
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint (default: the demo)")
    parser.add_argument("--hardware", default=HERE, help="a name in the table (default: this machine, measured)")
    parser.add_argument("--table", type=Path, default=HARDWARE, help="hardware table, JSON")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(BYTES), help="default: bfloat16")
    parser.add_argument("--tokens", type=int, default=8192, help="per sequence (default: 8192)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument("--structure", help="in place of the checkpoint's")
    parser.add_argument("--retention", type=float, help="share that every level keeps, in place of the checkpoint's")
    chosen = parser.parse_args(arguments)
    config = read_config(folder_of(chosen))
    config = changed(config, chosen.structure or str(config.structure), chosen.retention)
    if chosen.hardware == HERE:
        hardware = this_machine("cuda" if torch.cuda.is_available() else "cpu", chosen.dtype)
    else:
        hardware = find_hardware(load_hardware(chosen.table), chosen.hardware)
    scenario = Scenario(hardware, chosen.tokens, chosen.batch, chosen.dtype)
    lines = predict(config, scenario)
    print(f"{hardware.name} ({hardware.source})\n")  # noqa: T201
    print(f"{'':16}{'SUBLLM':>14}{'dense':>14}{'ratio':>8}")  # noqa: T201
    for line in lines:
        print(  # noqa: T201
            f"{line.what:16}{line.ours:>14,.2f}{line.dense:>14,.2f}{line.ours / line.dense:>8.2f} {line.unit}"
        )
    for phase in PHASES:
        length = break_even(config, phase, scenario)
        print(f"{phase} pays from {f'{length:,} tokens on' if length else 'no length on'}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
