"""`subllm training-step`: time and memory of training steps, a SUBLLM against the LLaMA of its size.

subllm training-step --config assets/training/small.json --lengths 512 2048 4096 --out DIR
"""

import argparse
import sys
from pathlib import Path

from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.device import pick_device
from subllm.command import Arguments, positive
from subllm.train.config import TrainConfig

from ..cost.training_step import compare_steps, facts_of, report
from .arguments import analysis_command, check_folder


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm training-step", description="Measure training steps against the LLaMA of the same size."
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON file of a training run")
    parser.add_argument("--lengths", type=positive, nargs="+", default=[512, 2048, 4096], help="tokens per sequence")
    parser.add_argument("--tokens", type=positive, default=4096, help="tokens per step, if a sequence is not longer")
    parser.add_argument("--repeats", type=positive, default=5, help="timed steps of each model (default: 5)")
    parser.add_argument("--precision", default="float32", help="float32 (default) or bf16")
    parser.add_argument("--out", type=Path, help="folder for the table")
    chosen = parser.parse_args(arguments)
    check_folder(chosen.out)
    device = pick_device()
    config = TrainConfig.read(chosen.config, precision=chosen.precision)
    rows = [
        compare_steps(config, length, max(chosen.tokens // length, 1), chosen.repeats, device)
        for length in chosen.lengths
    ]
    text = report(rows, facts_of(config, chosen.repeats, device))
    print(text)  # noqa: T201
    if chosen.out:
        name = f"training-{'gpu' if device.startswith('cuda') else 'cpu'}-{config.precision}.md"
        chosen.out.mkdir(parents=True, exist_ok=True)
        with full_disk_reported(chosen.out), written_whole(chosen.out / name) as partial:
            partial.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
