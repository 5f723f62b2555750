"""`subllm patch`: put the state of one prompt into the run of another, and print what that changes.

subllm patch --prompt "Paris is in" --other "Rome is in" --token 0 --level 1
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from subllm.command import Arguments

from ..debug.intervene import UneditedRun, run_unedited
from ..debug.patching import Patch, Patched, patch_levels, run_patched
from ..errors import AnalysisError
from ..trace.tokenize import read_answer, read_prompt
from .arguments import add_checkpoint, add_prompt, analysis_command, check_file, load, prompt_of, save_trace

_FLIPS = 20  # decisions that a line names


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm patch",
        description="Put the state of a token of another prompt into the run of a prompt, as it reaches a level.",
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--other", required=True, help="text of the other prompt")
    parser.add_argument("--token", type=int, required=True, help="token of the prompt whose state is replaced, from 0")
    parser.add_argument("--source", type=int, help="token of the other prompt (default: the same number)")
    parser.add_argument("--level", type=int, help="level that the state reaches (default: one after the other)")
    parser.add_argument("--answer", default="", help="text whose probability after the prompt is watched")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="save the patched run's trace; needs --level")
    chosen = parser.parse_args(arguments)
    if chosen.out and chosen.level is None:
        raise AnalysisError("--out saves one run; say with --level before which level the state is put in.")
    check_file(chosen.out)
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    most = checkpoint.model.config.max_position_embeddings
    run = run_unedited(checkpoint, prompt, read_answer(chosen.answer, checkpoint.tokenizer, most - len(prompt)))
    special = not chosen.no_special_tokens
    second = read_prompt(chosen.other, checkpoint.tokenizer, most, chat=chosen.chat, special_tokens=special)
    other = run_unedited(checkpoint, second)
    source = chosen.token if chosen.source is None else chosen.source
    if chosen.level is None:
        print(_sweep(run, other, list(patch_levels(run, other, chosen.token, source))))  # noqa: T201
        return
    found = run_patched(run, other, Patch(chosen.level, chosen.token, source))
    if chosen.out:
        save_trace(found.trace, chosen.out)
    print(_report(run, other, found))  # noqa: T201


def _heading(run: UneditedRun, other: UneditedRun, patch: Patch) -> str:
    this, that = run.trace.prompt.pieces[patch.token], other.trace.prompt.pieces[patch.source]
    return f"{str(this)!r} (token {patch.token}) becomes {str(that)!r} (token {patch.source})"


def _sweep(run: UneditedRun, other: UneditedRun, found: list[Patched]) -> str:
    lines = [_heading(run, other, found[0].patch)]  # every token reaches the first level
    return "\n".join([*lines, *(f"  before Level {each.patch.level}: {_in_short(each)}" for each in found)])


def _in_short(found: Patched) -> str:
    moved = "the next tokens are alike" if np.isnan(found.moved) else f"next token {found.moved:.0%} of the way"
    return f"state {found.distance:.0%} apart, {moved}, decisions flipped: {np.abs(found.flipped).sum():,}"


def _report(run: UneditedRun, other: UneditedRun, found: Patched) -> str:
    lines = [f"{_heading(run, other, found.patch)} before Level {found.patch.level}: {_in_short(found)}"]
    if found.answer:
        lines.append(f"log-probability of the answer: {found.answer.unedited:.3f} -> {found.answer.edited:.3f} nats")
    for level in found.trace.routing.levels:
        signs = found.flipped[level - 1]
        flips = [f"{'+' if signs[token] > 0 else '-'}{token}" for token in np.flatnonzero(signs)]
        more = f" and {len(flips) - _FLIPS:,} more" if len(flips) > _FLIPS else ""
        lines.append(f"Level {level} flipped: {', '.join(flips[:_FLIPS]) or 'none'}{more}")
    lines.append("next token: without, with, after the other prompt")
    for piece, *three in zip(found.next_pieces, *found.next_probabilities, strict=True):
        lines.append("  " + "  ".join(f"{each:7.2%}" for each in three) + f"  {str(piece)!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
