"""Command line: run the parts, resume what is missing, and write the summary.

python -m tests.gpu --device cuda --out build/gpu
python -m tests.gpu --device cpu --dry --out DIR
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from .bundle import use_bundle
from .expected import summary
from .parts import PARTS, TRAININGS
from .runner import MOST_BYTES, ROOT, Status, Where, cards, limit_size, run_parts


def main() -> int:
    """Run; 0 if every part ran to its end."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Check and measure on one GPU.")
    parser.add_argument("--device", default="cuda", help="such as cuda or cpu (default: cuda)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu", help="folder of results (default: build/gpu)"
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes and small checkpoints: seconds per part")
    parser.add_argument("--minutes", type=float, default=25.0, help="time limit of all parts together (default: 25)")
    parser.add_argument(
        "--bundle", type=Path, default=ROOT / "build" / "gpu-bundle", help="as make gpu-bundle wrote it"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[part.name for part in (*PARTS, *TRAININGS)],
        default=[part.name for part in PARTS],
        help=f"parts to run (default: all but {', '.join(part.name for part in TRAININGS)})",
    )
    chosen = parser.parse_args()
    if not chosen.dry:
        use_bundle(chosen.bundle)
    os.environ["HF_HUB_OFFLINE"] = "1"
    where, began = Where(chosen.device, chosen.dry, chosen.out.resolve()), time.monotonic()
    where.results.mkdir(parents=True, exist_ok=True)

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)  # noqa: T201

    outcomes, parts = [], [part for part in (*PARTS, *TRAININGS) if part.name in chosen.only]
    if chosen.dry:  # the time limits are those of a GPU
        parts = [replace(part, seconds=10 * part.seconds) for part in parts]
    for outcome in run_parts(parts, where, 60 * chosen.minutes, tell):
        outcomes.append(outcome)
        removed = limit_size(where.results, MOST_BYTES * (2 if parts[-1] in TRAININGS else 1))  # which leave weights
        size = sum(path.stat().st_size for path in where.results.rglob("*") if path.is_file())
        notes = [f"cards: {', '.join(cards()) or 'none'}", f"device: {chosen.device}"]
        notes += [f"{size / 1e6:.1f} MB of results", f"{time.monotonic() - began:.0f} s in this run"]
        notes += [f"removed, since the results were too large: {', '.join(removed)}"] if removed else []
        (where.results / "summary.md").write_text(summary(outcomes, where, notes), encoding="utf-8")
    print(where.results / "summary.md")  # noqa: T201
    return 0 if all(outcome.status is Status.DONE for outcome in outcomes) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
