"""`subllm corpus-rivals`: other selection rules at equal shares, over documents of a corpus result."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from subllm.checkpoints.dense import load_dense
from subllm.command import Arguments, positive

from ..corpus.rivals import corpus_rivals
from ..quality.selection_rules import SelectionRule
from .arguments import add_checkpoint, analysis_command, load
from .rivals import NAMES


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm corpus-rivals",
        description="Read the first tokens of a sample of the documents of a corpus result under other selection "
        "rules, each at the share of tokens that every level keeps, and write summary/rules.parquet. Nothing is marked "
        "with fewer than 20 documents.",
    )
    parser.add_argument("result", type=Path, metavar="DIR", help="folder that subllm corpus wrote")
    add_checkpoint(parser)
    parser.add_argument(
        "--documents", type=positive, default=32, metavar="N", help="in the sample, at least 1 (default: 32)"
    )
    parser.add_argument(
        "--tokens", type=int, default=256, metavar="N", help="from the beginning of each, at least 33 (default: 256)"
    )
    parser.add_argument("--oracle", action="store_true", help="also drop every token alone (short documents)")
    parser.add_argument(
        "--needles", action="store_true", help="also hide a number in each document, and see which rules find it"
    )
    chosen = parser.parse_args(arguments)
    checkpoint = load(chosen)
    with tqdm(total=100, disable=None, bar_format="{desc}", file=sys.stderr) as bar:

        def progress(share: float, stage: str, **values: object) -> None:
            if stage == "rivals":
                bar.set_description_str(f"documents: {values['done']} of {values['length']}")

        table = corpus_rivals(
            chosen.result,
            checkpoint,
            load_dense(checkpoint),
            documents=chosen.documents,
            tokens=chosen.tokens,
            oracle=chosen.oracle,
            needles=chosen.needles,
            progress=progress,
        )
    rows = table.to_pylist()
    lines = [f"documents: {rows[0]['documents']}; tokens: {rows[0]['tokens']:,}"]
    lines.append(
        f"{'rule':40} {'loss':>7} {'minus own, interval':>26} {'marked':>6} {'agrees':>7} {'KL':>7} {'found':>6}"
    )
    for row in rows:
        name = NAMES[SelectionRule(row["rule"])] + (", its own weights" if row["own_weights"] else "")
        between = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        mark = "yes" if row["marked"] else ""
        found = "–" if row["found"] != row["found"] else f"{row['found']:.0%}"
        lines.append(
            f"{name:40} {row['loss']:7.3f} {between:>26} {mark:>6} {row['agreement']:7.0%} {row['divergence']:7.3f} "
            f"{found:>6}"
        )
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
