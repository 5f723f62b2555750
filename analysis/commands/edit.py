"""`subllm edit`: change what the routers decide about a prompt, and print what that changes.

subllm edit --prompt "..." --drop 3-7@2 --keep 12@1 --threshold 0.3@1 --answer " Paris"
"""

import argparse
import sys
from pathlib import Path

from subllm.command import Arguments

from ..debug.intervene import Outcome, intervene, run_unedited
from ..trace.tokenize import read_answer
from .arguments import (
    add_checkpoint,
    add_edits,
    add_prompt,
    add_rule,
    analysis_command,
    check_file,
    edits_of,
    load,
    prompt_of,
    save_trace,
)


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm edit", description="Edit the routing of a prompt, and print what that changes."
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--answer", default="", help="text whose probability after the prompt is watched")
    add_rule(parser)
    add_edits(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="save the edited run's trace")
    chosen = parser.parse_args(arguments)
    check_file(chosen.out)
    edits = edits_of(chosen)
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    room = checkpoint.model.config.max_position_embeddings - len(prompt)
    run = run_unedited(checkpoint, prompt, read_answer(chosen.answer, checkpoint.tokenizer, room))
    unedited, outcome = intervene(run, ()), intervene(run, edits.on(prompt, checkpoint))
    if chosen.out:
        save_trace(outcome.trace, chosen.out)
    print(report(unedited, outcome))  # noqa: T201


def report(unedited: Outcome, outcome: Outcome) -> str:
    """What the edits changed, as text."""
    before, after = unedited.trace, outcome.trace
    lines = [
        f"edits: {', '.join(map(str, outcome.edits)) or 'none'}",
        f"tokens: {after.num_tokens:,}; read again: {outcome.share:.0%} of the operations, "
        f"{1000 * outcome.seconds:,.0f} ms of {1000 * outcome.whole_seconds:,.0f} ms",
        f"perplexity of the prompt: {before.perplexity:.3f} -> {after.perplexity:.3f}" if after.num_tokens > 1 else "",
        f"log-probability of the answer: {outcome.answer.unedited:.3f} -> {outcome.answer.edited:.3f} nats"
        if outcome.answer
        else "",
        f"divergence after the prompt: {outcome.divergence:.4f} nats",
        f"cache: {outcome.cache_bytes.unedited:,.0f} -> {outcome.cache_bytes.edited:,.0f} bytes; "
        f"operations: {outcome.operations.ratio - 1:+.1%}",
    ]
    for level in after.routing.levels:
        flips = ", ".join(
            f"{'+' if sign > 0 else '-'}{token}" for token, sign in enumerate(outcome.flipped[level - 1]) if sign
        )
        counts = [trace.routing.kept[level - 1].sum() for trace in (before, after)]
        lines.append(f"Level {level}: keeps {counts[0]:,} -> {counts[1]:,}; flipped: {flips or 'none'}")
    lines += [
        f"token {token} never reached Level {level}: an outer level dropped it; keep it there too"
        for level, token in outcome.absent
    ]
    lines.append("next token:")
    for piece, *both in zip(outcome.next_pieces, *outcome.next_probabilities, strict=True):
        lines.append(f"  {both[0]:7.2%} -> {both[1]:7.2%}  {str(piece)!r}")
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
