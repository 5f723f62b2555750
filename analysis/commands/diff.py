"""`subllm diff`: whether two saved traces agree within a tolerance, as a check for continuous integration."""

import argparse
import sys
from pathlib import Path

from subllm.command import Arguments

from ..trace.difference import differences
from ..trace.files import PARTS
from ..trace.trace import Trace
from .arguments import analysis_command

_DIFFERENT, _TROUBLE = 1, 2  # exit codes, as those of diff


@analysis_command(mistake=_TROUBLE)
def main(arguments: Arguments) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm diff",
        description="Compare two saved traces entry by entry. The exit code is 0 if they agree, 1 if they differ, and "
        "2 if they cannot be compared. Times, machines and versions may differ.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST.npz", help="a saved trace; see subllm trace --out")
    parser.add_argument("second", type=Path, metavar="SECOND.npz", help="another one")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="how far numbers may be apart, as a share of the larger one, or absolutely below 1 (default: 0). "
        "Decisions, ids and texts must be equal",
    )
    parser.add_argument("--ignore", action="append", default=[], choices=list(PARTS), help="a part that may differ")
    chosen = parser.parse_args(arguments)
    first, second = Trace.load(chosen.first), Trace.load(chosen.second)
    found = differences(first, second, chosen.tolerance, chosen.ignore)
    for difference in found:
        print(difference)  # noqa: T201
    if not found:
        print(f"The traces agree: {first.num_tokens:,} tokens, {first.routing.num_levels} levels.")  # noqa: T201
    return _DIFFERENT if found else 0


if __name__ == "__main__":
    sys.exit(main())
