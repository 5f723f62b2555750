"""`subllm why`: which parts of a prompt made an importance score, or the next token, what it is, and not another.

subllm why --prompt "..." --answer " Paris" --instead " London"
subllm why --prompt "..." --level 1 --token 7 --instead 5
"""

import argparse
import sys

import numpy as np
import torch

from subllm import Probe
from subllm.command import Arguments, positive

from ..debug.attribution import STEPS, attribute
from ..debug.attribution_methods import Method
from ..debug.contrast import Contrasted, Decision, decision, question_of
from ..debug.edit_override import EditOverride, kinds_of
from ..debug.edits import check
from ..debug.target import Baseline, Held, Question
from ..guard import ids_on_device
from ..trace.prefill import prefill
from ..trace.token_classes import words_of
from .arguments import add_checkpoint, add_edits, add_prompt, add_rule, analysis_command, edits_of, load, prompt_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm why",
        description="Attribute an importance score, or the next token, to the words or tokens of the prompt; or the "
        "difference between two of them.",
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--token", type=int, help="token of the prompt, from 0 (default: the last)")
    parser.add_argument("--level", type=int, help="explain its score at this level (default: explain the next token)")
    parser.add_argument(
        "--answer", default="", help="explain this next token, the first of the text (default: the likeliest)"
    )
    parser.add_argument(
        "--instead",
        default="",
        metavar="TOKEN",
        help="why not this one: the text of another next token or, with --level, the number of another token",
    )
    methods, held, baselines = ([str(each) for each in kind] for kind in (Method, Held, Baseline))
    parser.add_argument("--method", choices=methods, default=methods[0], help=f"default: {methods[0]}")
    parser.add_argument("--held", choices=held, default=held[0], help="what stays fixed (default: kept)")
    parser.add_argument("--baseline", choices=baselines, default=baselines[0], help="embedding of an absent word")
    parser.add_argument(
        "--steps", type=positive, default=STEPS, help=f"of integrated gradients and conductance (default: {STEPS})"
    )
    parser.add_argument("--tokens", action="store_true", help="attribute to single tokens in place of words")
    parser.add_argument("--most", type=positive, default=12, help="words or tokens to print (default: 12)")
    add_rule(parser)
    add_edits(parser)
    chosen = parser.parse_args(arguments)
    asked = edits_of(chosen)
    checkpoint = load(chosen)
    prompt = prompt_of(chosen, checkpoint)
    edits = asked.on(prompt, checkpoint)
    check(edits, kinds_of(checkpoint.model), prompt)
    override = EditOverride(edits, prompt) if edits else None
    token = len(prompt) - 1 if chosen.token is None else chosen.token
    groups = np.arange(len(prompt)) if chosen.tokens else words_of(prompt)
    question = question_of(token, chosen.level, checkpoint.tokenizer, chosen.answer, chosen.instead)
    found = attribute(
        checkpoint.model,
        prompt.token_ids,
        question,
        chosen.method,
        chosen.held,
        baseline=chosen.baseline,
        groups=groups,
        steps=chosen.steps,
        override=override,
    )
    what = _in_words(question, Contrasted.of(question, found.answer, prompt, checkpoint.tokenizer))
    part = "token" if chosen.tokens else "word"
    print(f"{what}: {found.value:.4f}; with every {part} at its baseline: {found.baseline:.4f}")  # noqa: T201
    if question.level is not None:
        with torch.inference_mode():
            ids, probe = ids_on_device(checkpoint.model, prompt.token_ids), Probe(override=override)
            routing = prefill(checkpoint.model, ids, probe=probe).routing
        for each in question.tokens:
            print(_decided(decision(routing, question.level, each)))  # noqa: T201
    for group in np.argsort(-np.abs(found.values))[: chosen.most]:
        members = np.flatnonzero(groups == group)
        word = prompt.text[int(prompt.starts[members[0]]) : int(prompt.ends[members[-1]])]
        word = str(prompt.pieces[group]) if chosen.tokens else word
        print(f"  {found.values[group]:+9.4f}  {word!r}")  # noqa: T201
    print(f"convergence delta: {found.delta:+.4f}; {found.seconds:.2f} s")  # noqa: T201


def _in_words(question: Question, names: Contrasted) -> str:
    """What is explained."""
    if question.level is None:
        what = f"log-probability of {names.this!r} after token {question.token}"
        return what if question.instead is None else f"{what} minus that of {names.that!r}"
    what = f"score of token {question.token} {names.this!r} at Level {question.level}"
    return what if question.instead is None else f"{what} minus that of token {question.instead} {names.that!r}"


def _decided(found: Decision) -> str:
    """A line about a decision."""
    return (
        f"  token {found.token}: score {found.score:+.4f}, threshold {found.threshold:+.4f}, rank {found.rank:,} of "
        f"{found.reached:,}: {'kept' if found.kept else 'dropped'}"
    )


if __name__ == "__main__":
    sys.exit(main())
