"""`subllm routers`: prefill, decode and training steps of each router against LLaMA, on random models or trained runs.

subllm routers --out DIR
subllm routers --runs assets/small assets/routers/mixture-of-depths --lengths 2048 --out DIR
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from subllm.checkpoints.config import read_config
from subllm.checkpoints.files import CONFIG
from subllm.checkpoints.load import load_checkpoint
from subllm.checkpoints.weights import digest, weight_files
from subllm.command import Arguments, positive
from subllm.runs.folder import FINAL, LOG_FILE, read_log

from ..cost.benchmark_text import prompt_of
from ..cost.comparison import DECODE_AGAINST, WRITING
from ..cost.routers import (
    NAMES,
    RouterRow,
    load_table,
    measure_random,
    measure_trained,
    report,
    save_table,
    trained_name,
)
from ..cost.sweep import machine
from .arguments import analysis_command, check_folder


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="subllm routers", description="Measure each router against LLaMA.")
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="folders of trainings, with final (default: random weights)"
    )
    parser.add_argument(
        "--routers",
        nargs="+",
        choices=sorted(NAMES),
        default=list(NAMES),
        help="routers to measure with random weights",
    )
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=[512, 2048, 8192], help="in tokens (default: 512 2048 8192)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="timed passes of each model (default: 3)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the table; rows in it are kept if they are of this machine, "
        "these versions and as many repeats, and of trainings that have not changed",
    )
    chosen = parser.parse_args(arguments)
    check_folder(chosen.out)
    facts = machine("cpu") | {"dtype": "float32", DECODE_AGAINST: WRITING, "repeats": str(chosen.repeats)}
    file = chosen.out / f"routers-{'trained' if chosen.runs else 'random'}.json" if chosen.out else None
    rows = load_table(file, facts) if file else []
    digests = {run: _digest(run / FINAL) for run in chosen.runs}
    rows = [row for row in rows if row.digest == digests.get(Path(row.run), row.digest)]  # what was trained anew goes
    known = [*chosen.runs, *(Path(row.run) for row in rows if row.run)]
    for tokens in sorted(chosen.lengths):
        for each in dict.fromkeys(chosen.runs or chosen.routers):
            if any(row.tokens == tokens and (row.run == str(each) or row.name == NAMES.get(each)) for row in rows):
                continue
            if chosen.runs:
                name = trained_name(each, read_config(each / FINAL), known)
                row = replace(_trained(name, each, tokens, chosen.repeats), run=str(each), digest=digests[each])
            else:
                row = measure_random(each, tokens, chosen.repeats)
            rows.append(row)
            print(f"{row.name}, {tokens:,} tokens: {row.prefill:.2f}×", file=sys.stderr)  # noqa: T201
            if file:
                save_table(file, facts, rows)
    print(report(facts, rows))  # noqa: T201


def _digest(folder: Path) -> str:
    return digest([folder / CONFIG, *weight_files(folder)])


def _trained(name: str, folder: Path, tokens: int, repeats: int) -> RouterRow:
    checkpoint = load_checkpoint(folder / FINAL, "cpu", "float32")
    row = measure_trained(name, checkpoint.model, prompt_of(checkpoint, tokens, 1), repeats)
    log = list(read_log(folder / LOG_FILE))
    evaluated = [entry for entry in log if "eval_loss" in entry]
    if not evaluated:
        return row
    per_step = next((entry["tokens"] / entry["step"] for entry in log if "tokens" in entry), 0)
    return replace(row, loss=evaluated[-1]["eval_loss"], read=round(per_step * evaluated[-1]["step"]))


if __name__ == "__main__":
    sys.exit(main())
