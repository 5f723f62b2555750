"""`subllm evaluate`: perplexity, needles and benchmark tasks of a checkpoint, beside its dense model.

subllm evaluate --data packed --lengths 512 2048 --retentions 0 0.5 0.8
subllm evaluate --needles 512 2048 --depths 0.1 0.5 0.9
subllm evaluate --tasks mmlu bbh agieval
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from subllm.checkpoints.dense import load_dense
from subllm.command import Arguments
from subllm.convert.fidelity import measure_fidelity

from ..errors import AnalysisError
from ..quality.evaluate import at_retention, held_out_blocks, needles, report, run_tasks
from .arguments import add_checkpoint, analysis_command, load


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm evaluate", description="Measure the quality of a checkpoint beside its dense model."
    )
    add_checkpoint(parser)
    parser.add_argument("--data", type=Path, nargs="+", help="packed text (its held-out part), or text files")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512], help="tokens read at once (default: 512)")
    parser.add_argument(
        "--retentions",
        type=float,
        nargs="+",
        default=[0.0],
        help="share that each level must keep (default: its own)",
    )
    parser.add_argument("--blocks", type=int, default=32, help="sequences per length at most (default: 32)")
    parser.add_argument("--needles", type=int, nargs="+", default=[], help="prompt lengths to hide numbers in")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.1, 0.5, 0.9], help="where, as shares")
    parser.add_argument("--trials", type=int, default=10, help="needles per length and depth (default: 10)")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks of the lm-evaluation-harness")
    parser.add_argument("--own-tasks", type=Path, help="folder with tasks of your own")
    parser.add_argument("--limit", type=int, help="examples per task at most")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args(arguments)
    if not (chosen.data or chosen.needles or chosen.tasks):
        raise AnalysisError("There is nothing to do; give --data, --needles or --tasks.")
    checkpoint = load(chosen)
    dense = load_dense(checkpoint)
    evaluations = {}
    for length in chosen.lengths if chosen.data else ():
        blocks = held_out_blocks(checkpoint, chosen.data, length, chosen.blocks)
        for retention in chosen.retentions:
            override = at_retention(checkpoint.model, blocks, retention)
            evaluations[length, retention] = measure_fidelity(checkpoint.model, dense.model, blocks, override)
    found = [
        result
        for length in chosen.needles
        for result in needles(checkpoint, dense, length, chosen.depths, chosen.trials)
    ]
    tasks = run_tasks(checkpoint.folder, chosen.tasks, limit=chosen.limit, own=chosen.own_tasks) if chosen.tasks else {}
    print(f"Against: {dense.description}\n\n{report(evaluations, found, tasks)}")  # noqa: T201
    if chosen.out:
        content = {
            "checkpoint": checkpoint.digest,
            "dense": dense.description,
            "perplexity": [{"length": n, "asked": share} | asdict(e) for (n, share), e in evaluations.items()],
            "needles": [asdict(each) for each in found],
            "tasks": tasks,
        }
        chosen.out.write_text(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
