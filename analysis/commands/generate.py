"""`subllm generate`: continue a prompt token by token, and show what each level did with every new token."""

import argparse
import sys

import numpy as np

from subllm.checkpoints.dense import load_dense
from subllm.command import Arguments, positive

from ..debug.generation import Generation, Sampling
from ..errors import AnalysisError
from ..trace.tokenize import decode_pieces
from .arguments import add_checkpoint, add_edits, add_prompt, add_rule, analysis_command, edits_of, load, prompt_of


@analysis_command()
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="subllm generate", description="Continue a prompt, and show which levels keep every new token."
    )
    add_checkpoint(parser)
    add_prompt(parser)
    parser.add_argument("--new-tokens", type=positive, default=40, help="tokens to write at most (default: 40)")
    parser.add_argument("--model", choices=("subllm", "dense"), default="subllm", help="who writes (default: subllm)")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature, help="default: 0, greedy")
    parser.add_argument("--top-p", type=float, default=Sampling.top_p, help="nucleus sampling (default: 1, off)")
    parser.add_argument("--top-k", type=int, default=Sampling.top_k, help="sample from so many (default: 0, all)")
    parser.add_argument(
        "--repetition-penalty", type=float, default=Sampling.repetition_penalty, help="default: 1, none"
    )
    parser.add_argument("--seed", type=int, default=Sampling.seed, help="random seed (default: 0)")
    add_rule(parser)
    add_edits(parser)
    chosen = parser.parse_args(arguments)
    edits = edits_of(chosen)
    if chosen.model == "dense" and (edits.rule or edits.edits):
        raise AnalysisError(
            "The dense model has no levels, so edits and rules cannot change it; leave them out, or leave out "
            "--model dense."
        )
    checkpoint = load(chosen)
    model = load_dense(checkpoint).model if chosen.model == "dense" else checkpoint.model
    sampling = Sampling(chosen.temperature, chosen.top_p, chosen.top_k, chosen.repetition_penalty, chosen.seed)
    prompt = prompt_of(chosen, checkpoint)
    text = Generation(model, prompt, sampling, edits.on(prompt, checkpoint))
    while len(text.tokens) < chosen.new_tokens and not text.finished:
        text.step()
    pieces = decode_pieces(np.asarray([token.id for token in text.tokens], dtype=np.int64), checkpoint.tokenizer)
    for token, piece in zip(text.tokens, pieces, strict=True):
        kept = ", ".join(str(level) for level, value in enumerate(token.kept, 1) if value)
        print(  # noqa: T201
            f"  {str(piece)!r:20} {token.blocks:3} blocks  {1000 * token.seconds:7.1f} ms  levels: {kept or '-'}"
        )
    print(checkpoint.tokenizer.decode([token.id for token in text.tokens]))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
