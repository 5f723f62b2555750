"""`subllm rivals`: other selection rules on the same model and prompt, and whether the learned one is better."""

import argparse
import sys
from pathlib import Path

import numpy as np

from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.dense import load_dense
from subllm.command import Arguments

from ..quality.rivals import Comparison, Outcome, compare_rules
from ..quality.selection_rules import SelectionRule
from ..run import RunOptions, record_trace
from ..trace.tokenize import read_answer
from .arguments import add_checkpoint, add_prompt, analysis_command, check_file, load, prompt_of

NAMES = {
    SelectionRule.RECORDED: "this run's selection",
    SelectionRule.RANDOM: "random",
    SelectionRule.EVEN: "every k-th token",
    SelectionRule.ENDS: "first and most recent",
    SelectionRule.NORM: "highest norm",
    SelectionRule.SURPRISAL: "highest surprisal",
    SelectionRule.RARE: "rarest in the corpus",
    SelectionRule.ORACLE: "oracle by ablation",
}
_SAID = {
    Outcome.BETTER: "Better than every simple rule on this text",
    Outcome.WORSE: "Worse than a simple rule on this text",
    Outcome.OPEN: "Cannot be told from a simple rule on this text",
    Outcome.SHORT: "The text is too short for a verdict",
}


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm rivals",
        description="Run a prompt under other selection rules, each at the share of tokens that every level keeps.",
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--answer", default="", help="text whose probability after the prompt is measured")
    parser.add_argument("--oracle", action="store_true", help="also drop every token alone (short prompts)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="save every token's surprisal under every rule")
    chosen = parser.parse_args(arguments)
    check_file(chosen.out)
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    answer = read_answer(
        chosen.answer, checkpoint.tokenizer, checkpoint.model.config.max_position_embeddings - len(prompt)
    )
    trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=0, compare=False))
    dense = load_dense(checkpoint)
    *_, found = compare_rules(checkpoint, dense, trace, answer, oracle=chosen.oracle, seed=chosen.seed)
    if chosen.out:
        with full_disk_reported(chosen.out), written_whole(chosen.out) as partial:
            found.tokens().to_csv(partial, index=False)
    print(report(found))  # noqa: T201


def report(found: Comparison) -> str:
    """The rules by their loss, and the verdict."""
    lines = [
        f"tokens: {len(found.prompt):,}; levels: {', '.join(map(str, found.levels))}; dense model: {found.reference}",
        f"dense loss: {np.nanmean(found.dense_surprisal):.3f} nats per token" if len(found.prompt) > 1 else "",
        f"{'rule':38} {'loss':>7} {'minus own, interval':>26} {'shared':>7} {'agrees':>7} {'KL':>7} {'answer':>8}",
    ]
    for row in found.table():
        name = NAMES[row.rule] + (", its own weights" if row.own_weights else "")
        name += f" ({row.draws} draws)" if row.draws > 1 else ""
        mean, low, high = row.difference
        between = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        answer = "" if np.isnan(row.answer) else f"{row.answer:8.2f}"
        lines.append(
            f"{name:38} {row.loss:7.3f} {between:>26} {row.shared:7.0%} {row.agreement:7.0%} {row.divergence:7.3f} "
            f"{answer:>8}"
        )
    verdict = found.verdict()
    mean, low, high = verdict.difference
    lines += [
        f"{_SAID[verdict.outcome]}: compared with {NAMES[SelectionRule.RECORDED]}, “{NAMES[verdict.rule]}” changes the "
        f"loss by {mean:+.3f} nats per token [{low:+.3f}, {high:+.3f}].",
        "All rules with weights of 1 unless said. The model was trained for its own rule. Surprisal is the dense "
        "model's. Intervals: 95% for all simple rules together, from blocks of this text.",
    ]
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
