"""`subllm why`: which parts of a prompt made an importance score, or the next token, what it is."""

import argparse
import sys

import numpy as np

from subllm.command import Arguments

from ..debug.attribution import attribute
from ..debug.attribution_methods import Method
from ..debug.target import Baseline, Held, Question
from ..trace.token_classes import words_of
from .arguments import add_checkpoint, add_prompt, analysis_command, load, prompt_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm why", description="Attribute an importance score, or the next token, to the words of the prompt."
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--token", type=int, help="token of the prompt, from 0 (default: the last)")
    parser.add_argument("--level", type=int, help="explain its score at this level (default: explain the next token)")
    methods, held, baselines = ([str(each) for each in kind] for kind in (Method, Held, Baseline))
    parser.add_argument("--method", choices=methods, default=methods[0], help=f"default: {methods[0]}")
    parser.add_argument("--held", choices=held, default=held[0], help="what stays fixed (default: kept)")
    parser.add_argument("--baseline", choices=baselines, default=baselines[0], help="embedding of an absent word")
    parser.add_argument("--most", type=int, default=12, help="words to print (default: 12)")
    chosen = parser.parse_args(arguments)
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    token = len(prompt) - 1 if chosen.token is None else chosen.token
    groups = words_of(prompt)[: token + 1]
    found = attribute(
        checkpoint.model,
        prompt.token_ids,
        Question(token, chosen.level),
        chosen.method,
        chosen.held,
        baseline=chosen.baseline,
        groups=groups,
    )
    what = "log-probability of the next token" if chosen.level is None else f"score at Level {chosen.level}"
    print(f"{what} after token {token}: {found.value:.4f}; with every word at its baseline: {found.baseline:.4f}")  # noqa: T201
    for group in np.argsort(-np.abs(found.values))[: chosen.most]:
        members = np.flatnonzero(groups == group)
        word = prompt.text[int(prompt.starts[members[0]]) : int(prompt.ends[members[-1]])]
        print(f"  {found.values[group]:+9.4f}  {word!r}")  # noqa: T201
    print(f"convergence delta: {found.delta:+.4f}; {found.seconds:.2f} s")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
