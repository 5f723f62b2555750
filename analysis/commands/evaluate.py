"""`subllm evaluate`: perplexity, needles and benchmark tasks of a checkpoint, beside its dense model.

subllm evaluate --data packed --lengths 512 2048 --retentions 0 0.5 0.8
subllm evaluate --needles 512 2048 --depths 0.1 0.5 0.9
subllm evaluate --chats --card README.md
subllm evaluate --tasks mmlu bbh agieval
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.device import dtype_name
from subllm.command import Arguments, positive
from subllm.convert.fidelity import measure_fidelity
from subllm.errors import first_line

from ..cost.page import listed
from ..cost.sweep import machine
from ..errors import AnalysisError
from ..guard import out_of_memory_reported
from ..quality.chats import NEW_TOKENS, Answer, answer_questions
from ..quality.evaluate import at_retention, held_out_blocks, in_a_cell, report, run_tasks
from ..quality.needles import NeedleResult, needles
from .arguments import add_checkpoint, add_rule, analysis_command, check_file, load, rule_of

_BEGIN, _END = "<!-- subllm evaluate -->", "<!-- end of subllm evaluate -->"  # around its tables in a card


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
    parser.add_argument("--blocks", type=positive, default=32, help="sequences per length at most (default: 32)")
    parser.add_argument("--needles", type=positive, nargs="+", default=[], help="prompt lengths to hide numbers in")
    parser.add_argument("--depths", type=float, nargs="+", default=[0.1, 0.5, 0.9], help="where, as shares")
    parser.add_argument("--trials", type=positive, default=10, help="needles per length and depth (default: 10)")
    parser.add_argument("--chats", action="store_true", help="ask ten everyday questions, and count repetitions")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks of the lm-evaluation-harness")
    parser.add_argument("--own-tasks", type=Path, help="folder with tasks of your own")
    parser.add_argument("--limit", type=positive, help="examples per task at most")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--card", type=Path, metavar="FILE.md", help="put the tables into a card, in place of those of an earlier run"
    )
    add_rule(parser)
    chosen = parser.parse_args(arguments)
    if not (chosen.data or chosen.needles or chosen.chats or chosen.tasks):
        raise AnalysisError("There is nothing to do; give --data, --needles, --chats or --tasks.")
    rule = rule_of(chosen)
    if rule is not None and (any(chosen.retentions) or chosen.chats or chosen.tasks):
        raise AnalysisError(
            "A rule is evaluated with --data and --needles; leave out --retentions, --chats and --tasks."
        )
    check_file(chosen.out)
    check_file(chosen.card)
    if chosen.card:
        _card(chosen.card)  # before hours of measuring
    checkpoint = load(chosen)
    dense = load_dense(checkpoint)
    read = chosen.lengths if chosen.data else ()
    texts = {length: held_out_blocks(checkpoint, chosen.data, length, chosen.blocks) for length in read}
    evaluations = {}
    for length, blocks in texts.items():
        for retention in chosen.retentions:
            with out_of_memory_reported(length, checkpoint.model):
                override = at_retention(checkpoint.model, blocks, retention)
                overrides = [] if rule is None else [rule.override(checkpoint, row[None]) for row in blocks]
                evaluations[length, retention] = measure_fidelity(
                    checkpoint.model, dense.model, blocks, override, overrides
                )
    found: list[NeedleResult] = []
    for length in chosen.needles:
        with out_of_memory_reported(length, checkpoint.model):
            found += needles(checkpoint, dense, length, chosen.depths, chosen.trials, rule=rule)
    chats: list[Answer] = []
    if chosen.chats:
        with out_of_memory_reported(NEW_TOKENS, checkpoint.model):
            chats = list(answer_questions(checkpoint, dense))
    tasks = run_tasks(checkpoint, chosen.tasks, limit=chosen.limit, own=chosen.own_tasks) if chosen.tasks else {}
    under = "" if rule is None else f"Rule: {in_a_cell(rule.name)}\n\n"
    text = f"Against: {dense.description}\n\n{under}{report(evaluations, found, chats, tasks)}"
    print(text)  # noqa: T201
    if chosen.card:
        facts = machine(str(checkpoint.model.device)) | {
            "dtype": dtype_name(checkpoint.model),
            "checkpoint": checkpoint.digest,
        }
        command = shlex.join(["subllm", "evaluate", *(sys.argv[1:] if arguments is None else arguments)])
        begin, end = _card(chosen.card)  # as it is now: somebody may have edited it meanwhile
        with full_disk_reported(chosen.card), written_whole(chosen.card) as partial:
            partial.write_text(f"{begin}{text}\n\n{listed(facts)}\n\n```\n{command}\n```{end}", encoding="utf-8")
    if chosen.out:
        content = {
            "checkpoint": checkpoint.digest,
            "dense": dense.description,
            "rule": None if rule is None else json.loads(rule.written()),
            "perplexity": [{"length": n, "asked": share} | asdict(e) for (n, share), e in evaluations.items()],
            "needles": [asdict(each) for each in found],
            "chats": [asdict(each) for each in chats],
            "tasks": tasks,
        }
        with full_disk_reported(chosen.out), written_whole(chosen.out) as partial:
            partial.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _card(path: Path) -> tuple[str, str]:
    """What stands in a card before and after the tables of an earlier run; with none, they come at its end.

    Raises:
        AnalysisError: if it cannot be read, or the mark of their end is missing.
    """
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"The card {path} cannot be read as UTF-8 text ({first_line(error)}).") from error
    before, begin, rest = old.partition(_BEGIN)
    if not begin:
        return f"{old.rstrip()}\n\n## Evaluation\n\n{_BEGIN}\n\n".lstrip(), f"\n\n{_END}\n"
    _, end, after = rest.partition(_END)
    if not end:
        raise AnalysisError(
            f'The card {path} has the mark "{_BEGIN}" and no "{_END}" after it; put it where tables end.'
        )
    return f"{before}{_BEGIN}\n\n", f"\n\n{_END}{after}"


if __name__ == "__main__":
    sys.exit(main())
