"""`subllm trace`: run a prompt through a checkpoint, show what each level keeps, and save the trace."""

import argparse
import sys
from pathlib import Path

from subllm.checkpoints.dense import load_dense
from subllm.command import Arguments

from ..figures.terms import flag_in_words
from ..run import RunOptions, record_trace
from ..trace.flags import flags
from ..trace.trace import Trace
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
        prog="subllm trace", description="Run a prompt and show which tokens each level keeps."
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--new-tokens", type=int, default=0, help="length of a greedy continuation (default: 0)")
    parser.add_argument(
        "--compare", action="store_true", help="measure time, memory and agreement with the dense model"
    )
    add_rule(parser)
    add_edits(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="save the trace")
    chosen = parser.parse_args(arguments)
    check_file(chosen.out)
    asked = edits_of(chosen)  # before there is a model
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    options = RunOptions(chosen.new_tokens, chosen.compare, rule=asked.as_rule(prompt, checkpoint))
    dense = load_dense(checkpoint) if chosen.compare else None
    trace = record_trace(checkpoint, prompt, options, dense=dense, name=checkpoint.folder.name)
    print(report(trace))  # noqa: T201
    if chosen.out:
        save_trace(trace, chosen.out)


def report(trace: Trace) -> str:
    """What each level kept, as text; tokens that no level dropped stand without a mark."""
    where, routing = trace.provenance, trace.routing
    lines = [f"{where.checkpoint} · {where.structure} · {where.device} · {where.dtype} · {trace.num_tokens:,} tokens"]
    if where.rule:
        lines.append(f"rule: {where.rule} ({'; '.join(where.edits) or 'names nothing in this prompt'})")
    elif where.edits:
        lines.append(f"edits: {'; '.join(where.edits)}")
    for level in routing.levels:
        kept, reached = routing.kept[level - 1], routing.reached[level - 1]
        if routing.merges[level - 1]:
            lines.append(f"Level {level} merges {reached.sum():,} tokens into {kept.sum():,}, carried by:")
        else:
            lines.append(f"Level {level} keeps {kept.sum():,} of {reached.sum():,} tokens:")
        lines.append("  " + " ".join(repr(str(piece)) for piece in trace.prompt.pieces[kept]))
    lines += [f"odd: {flag_in_words(trace, flag)}" for flag in flags(trace)]
    if trace.continuation is not None and trace.continuation.text:
        lines.append(f"continuation: {trace.continuation.text!r}")
    if trace.costs is not None:
        ours, dense = trace.costs.subllm, trace.costs.dense
        lines.append(
            f"prefill: {1000 * ours.median_seconds:,.1f} ms, dense {1000 * dense.median_seconds:,.1f} ms; "
            f"cache: {ours.cache_bytes:,} bytes, dense {dense.cache_bytes:,} bytes"
        )
    if trace.agreement is not None:
        lines.append(f"same likeliest next token as the dense model: {trace.agreement.agrees.mean():.0%} of positions")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
