"""`subllm answers`: files of answers to a lesson, joined into one."""

import argparse
import csv
import io
import sys
from pathlib import Path

from subllm.atomic import written_whole
from subllm.command import Arguments

from ..lesson.answers import joined
from .arguments import analysis_command, check_file


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm answers", description="Join the files of answers that learners downloaded at the end of a lesson."
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.csv", help="a learner's answers")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="where to write them (default: print them)")
    chosen = parser.parse_args(arguments)
    check_file(chosen.out)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(joined((file.name, file.read_bytes()) for file in chosen.files))
    if chosen.out is None:
        print(text.getvalue(), end="")  # noqa: T201
        return
    with written_whole(chosen.out) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8-sig")


if __name__ == "__main__":
    sys.exit(main())
