"""`subllm predict`: time and memory on hardware of the table, from a checkpoint's configuration alone.

subllm predict --checkpoint DIR --hardware "NVIDIA H100 SXM" --tokens 8192
subllm predict --hardware "NVIDIA H100 SXM" --papers
"""

import argparse
import sys
import textwrap
from pathlib import Path

from subllm.checkpoints.config import read_config
from subllm.checkpoints.device import pick_device
from subllm.command import Arguments, positive

from ..cost.calibration import this_machine
from ..cost.hardware import HARDWARE, Hardware, find_hardware, load_hardware
from ..cost.paper import SHARES, Range, papers
from ..cost.predict import HERE, LONGEST, LaunchBound, break_even, changed, launch_bound, predict
from ..cost.roofline import PHASES, Scenario
from ..cost.sizes import BYTES
from .arguments import add_folder, analysis_command, folder_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm predict", description="Predict time and memory against the dense model, on any hardware."
    )
    add_folder(parser)
    parser.add_argument("--hardware", default=HERE, help="a name in the table (default: this machine, measured)")
    parser.add_argument("--table", type=Path, default=HARDWARE, help="hardware table, JSON")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(BYTES), help="default: bfloat16")
    parser.add_argument("--tokens", type=positive, default=8192, help="per sequence (default: 8192)")
    parser.add_argument("--batch", type=positive, default=1, help="sequences (default: 1)")
    parser.add_argument("--structure", help="in place of the checkpoint's")
    parser.add_argument("--retention", type=float, help="share that every level keeps, in place of the checkpoint's")
    parser.add_argument("--graphs", action="store_true", help="decode with CUDA graphs, both models")
    parser.add_argument(
        "--papers", action="store_true", help="what papers about routers report, beside predictions; no checkpoint"
    )
    chosen = parser.parse_args(arguments)
    if chosen.hardware == HERE:
        hardware = this_machine(pick_device(), chosen.dtype)
    else:
        hardware = find_hardware(load_hardware(chosen.table), chosen.hardware)
    if chosen.papers:
        _print_papers(hardware)
        return
    config = read_config(folder_of(chosen))
    config = changed(config, chosen.structure or str(config.structure), chosen.retention)
    scenario = Scenario(hardware, chosen.tokens, chosen.batch, chosen.dtype, graphs=chosen.graphs)
    lines = predict(config, scenario)
    print(f"{hardware.name} ({hardware.source})\n")  # noqa: T201
    print(f"{'':16}{'SUBLLM':>14}{'dense':>14}{'ratio':>8}")  # noqa: T201
    for line in lines:
        print(  # noqa: T201
            f"{line.what:16}{line.ours:>14,.2f}{line.dense:>14,.2f}{line.ours / line.dense:>8.2f} {line.unit}"
        )
    for phase in PHASES:
        length = break_even(config, phase, scenario)
        print(f"{phase} {_pays(length)}")  # noqa: T201
    for found in launch_bound(config, scenario):
        print(_too_small(found))  # noqa: T201


def _pays(length: int | None) -> str:
    if length is None:
        return f"is slower at every length up to {LONGEST:,} tokens"
    return "is at least as fast at every length" if length == 1 else f"breaks even at {length:,} tokens"


def _print_papers(hardware: Hardware) -> None:
    print(f"{hardware.name} ({hardware.source}); launching is left out")  # noqa: T201
    for paper in papers(hardware):
        print(f"\n{'':26}{'':11}{'tokens':>7}  {'reported':26}predicted")  # noqa: T201
        for figure in paper.figures:
            reported = f"{figure.reported}× {figure.measured}" if figure.reported else "-"
            predicted = ", ".join(f"{what} {_ratio(what, ratio)}" for what, ratio in figure.predicted.items())
            tokens = f"{figure.tokens:,}" if figure.tokens else ""
            print(  # noqa: T201
                f"{figure.system:26}{figure.what:11}{tokens:>7}  {reported:26}{predicted or '-'}"
            )
        sources = sorted({figure.source for figure in paper.figures if figure.source})
        print(textwrap.fill(" ".join([*(f"{source}." for source in sources), paper.note]), 100))  # noqa: T201


def _ratio(what: str, ratio: Range) -> str:
    return f"{ratio.low:.1%} of the dense one's" if what in SHARES else f"{ratio}×"


def _too_small(found: LaunchBound) -> str:
    wanted = [f"{count:,} {what}" for count, what in ((found.tokens, "tokens"), (found.batch, "sequences")) if count]
    return (
        f"{found.phase} is launch-bound: launching its kernels takes {1000 * found.launching:,.2f} ms, running them "
        f"{1000 * found.working:,.2f} ms. The model is too small for this hardware to show what it saves; "
        + (f"it would from about {' or '.join(wanted)} on." if wanted else "it would at no length and batch tried.")
    )


if __name__ == "__main__":
    sys.exit(main())
