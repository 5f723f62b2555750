"""`subllm compare`: two saved traces side by side."""

import argparse
import sys
from pathlib import Path

from subllm.command import Arguments

from ..trace.pairs import differing, overlap, pair
from ..trace.trace import Trace
from .arguments import analysis_command

_SHOWN = 20


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm compare", description="Compare which tokens two saved traces keep; see subllm trace --out."
    )
    parser.add_argument("first", type=Path, metavar="FIRST.npz", help="a saved trace")
    parser.add_argument("second", type=Path, metavar="SECOND.npz", help="another one")
    chosen = parser.parse_args(arguments)
    print(report(Trace.load(chosen.first), Trace.load(chosen.second)))  # noqa: T201


def report(first: Trace, second: Trace) -> str:
    """Overlap of the kept tokens at every level that both traces have, and tokens that only one keeps."""
    pairing = pair(first.prompt, second.prompt)
    names = [_name(trace) for trace in (first, second)]
    lines = [f"{' | '.join(names)}: {len(pairing.first):,} tokens in common"]
    for level, row in overlap(first.routing, second.routing, pairing).iterrows():
        lines.append(
            f"Level {level}: keeps {row.kept_first:.0%} | {row.kept_second:.0%}; Jaccard index {row.both:.2f}; "
            f"correlation of scores {row.correlation:.2f}; decided differently: {row.differ:.0f}"
        )
        for index in differing(first.routing, second.routing, pairing, level)[:_SHOWN]:
            token = pairing.first[index]
            keeper = "first" if first.routing.kept[level - 1, token] else "second"
            lines.append(f"  token {token} {str(first.prompt.pieces[token])!r}: only the {keeper} keeps it")
    return "\n".join(lines)


def _name(trace: Trace) -> str:
    where = trace.provenance
    edits = where.rule or "; ".join(where.edits)
    return f"{where.checkpoint} ({where.structure})" + (f", {edits}" if edits else "")


if __name__ == "__main__":
    sys.exit(main())
