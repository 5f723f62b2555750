"""`subllm tradeoff`: quality against savings at several retentions, as a table and a picture.

subllm tradeoff --name demo --data text --out DIR
subllm tradeoff --name deep --checkpoint "$(subllm demo deep)" --data text --out DIR
"""

import argparse
import sys
from pathlib import Path

import torch

from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.device import dtype_name
from subllm.command import Arguments, positive
from subllm.text.blocks import DrawnBlocks
from subllm.text.documents import Documents

from ..cost.page import page
from ..cost.sweep import machine
from ..figures.tradeoff import tradeoff_svg
from ..guard import check_ids, out_of_memory_reported
from ..quality.tradeoff import Curve, Point, measure_points, read_curves, report, written
from .arguments import add_checkpoint, analysis_command, check_folder, load

NAME = "tradeoff"
_ABOUT = """Measured by `subllm tradeoff`: thresholds are moved so that every level keeps the share given. Quality is
measured on documents that conversions of this text hold out, time on one prompt, in turn with transformers' LLaMA.
The limit counts operations."""


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm tradeoff", description="Measure quality against savings at several retentions."
    )
    add_checkpoint(parser)
    parser.add_argument("--name", required=True, help="of the checkpoint in table and picture")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="text; conversions hold a part of it out")
    parser.add_argument("--length", type=positive, default=512, help="tokens read at once for quality (default: 512)")
    parser.add_argument("--blocks", type=positive, default=24, help="sequences at most (default: 24)")
    parser.add_argument(
        "--prompt-tokens", type=positive, default=2048, help="of the prompt that is timed (default: 2048)"
    )
    parser.add_argument(
        "--retentions",
        type=float,
        nargs="+",
        default=[0.5, 0.64, 0.7, 0.8, 0.9],
        help="share that each level must keep (default: 0.5 0.64 0.7 0.8 0.9)",
    )
    parser.add_argument("--repeats", type=positive, default=5, help="timed passes of each model (default: 5)")
    parser.add_argument("--out", type=Path, help="folder for table and picture; other checkpoints in it are kept")
    chosen = parser.parse_args(arguments)
    check_folder(chosen.out)
    file = chosen.out / f"{NAME}.json" if chosen.out else None
    others = [curve for curve in read_curves(file) if curve.name != chosen.name] if file else []
    checkpoint = load(chosen)
    dense = load_dense(checkpoint)
    rest = DrawnBlocks(Documents(chosen.data), checkpoint.tokenizer, length=chosen.length, held_out=True, seed=0)
    blocks = torch.stack([rest[index]["input_ids"] for index in range(chosen.blocks)])
    check_ids(checkpoint.model, blocks.numpy())
    points: list[Point] = []
    with out_of_memory_reported(chosen.prompt_tokens, checkpoint.model):
        for point in measure_points(checkpoint, dense, blocks, chosen.prompt_tokens, chosen.retentions, chosen.repeats):
            points.append(point)
            print(f"{point.asked:.0%}: {point.ratio:.3f}, {point.speed_up:.2f}×", file=sys.stderr)  # noqa: T201
    model = checkpoint.model
    facts = machine(str(model.device)) | {"dtype": dtype_name(model), "dense": dense.description}
    structure = str(model.config.structure)
    curves = [*others, Curve(chosen.name, structure, blocks.numel(), chosen.prompt_tokens, facts, points)]
    text = page("Quality against savings", _ABOUT, report(curves), _facts(curves))
    print(text)  # noqa: T201
    if file:
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (f"{NAME}.json", written(curves)),
            (f"{NAME}.md", text),
            (f"{NAME}.svg", tradeoff_svg(curves)),
        ):
            with full_disk_reported(chosen.out), written_whole(chosen.out / name) as partial:
                partial.write_text(content, encoding="utf-8")


def _facts(curves: list[Curve]) -> dict[str, str]:
    """Facts about the last measurement, and where those of other checkpoints differ, theirs."""
    facts = dict(curves[-1].facts)
    for curve in curves:
        facts[f"{curve.name}, tokens"] = f"{curve.tokens:,} for quality, {curve.prompt:,} for time"
        for name, value in curve.facts.items():
            if facts[name] != value:
                facts[f"{curve.name}, {name}"] = value
    return facts


if __name__ == "__main__":
    sys.exit(main())
